"""Looking at what a bus on Redis keeps, in steps: each is a script, and looks at some of it."""

from typing import Final

from meshd.engines.bus_redis_keys import HEAD

_LOOK: Final = """
-- Calls `see(place, fields)` with events behind an entry until it returns true, or for so many that nobody waits long.
-- Returns the last entry that was looked at, empty where there is no more.
local function look(cursor, see)
  local looked, seen_bytes, many = 0, 0, 16
  while true do
    local id, step = string.match(cursor, '^(%d+)%-(%d+)$')
    local entries = call('XRANGE', EVENTS, id .. '-' .. num(step + 1), '+', 'COUNT', many)
    for _, entry in ipairs(entries) do
      local f = entry[2]
      local place = place_of(entry)
      cursor = entry[1]
      looked = looked + 1
      seen_bytes = seen_bytes + #f[#f] + #(f[12] or '')
      if place and see(place, f) then return cursor end
    end
    if #entries < many then return '' end
    if looked >= 2000 or seen_bytes > 4194304 then return cursor end
    many = math.max(1, math.min(256, math.floor(1048576 * looked / (seen_bytes + 1)) + 1))
  end
end
"""

KEPT: Final = (
    HEAD
    + _LOOK
    + """
-- ARGV: a topic's pattern, the entry to look behind, how many events, 1 to count them only.
-- Returns where to look on or nothing, how many there are, and what they are.
local found, most, many = {}, tonumber(ARGV[7]), 0
local cursor = most > 0 and look(ARGV[6], function (place, f)
  if string.find(f[2], ARGV[5]) then
    many = many + 1
    if ARGV[8] ~= '1' then found[many] = {place, f[2], f[4], f[6], f[8], f[12], f[14]} end
  end
  return many == most
end) or ''
return {cursor, many, found}
"""
)

TOPICS: Final = (
    HEAD
    + _LOOK
    + """
-- ARGV: the entry to look behind. Returns where to look on or nothing; then for each topic its name, how many events it
-- has, their bytes, and the place of the last.
local found, names = {}, {}
local cursor = look(ARGV[5], function (place, f)
  local one = found[f[2]]
  if not one then
    one = {0, 0}
    found[f[2]] = one
    names[#names + 1] = f[2]
  end
  one[1], one[2], one[3] = one[1] + 1, one[2] + size_of(f), place
end)
local reply = {cursor}
for _, name in ipairs(names) do reply[#reply + 1] = {name, unpack(found[name])} end
return reply
"""
)
