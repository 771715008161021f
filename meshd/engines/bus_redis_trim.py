"""Dead letters of a bus on Redis, how far its groups have come, and what is too old: each a script."""

from typing import Final

from meshd.engines.bus_redis_keys import FREE, HEAD, PENDING

LETTERS: Final = (
    HEAD
    + """
-- ARGV: the group's name, the id after which to begin, how many. Returns ids.
local found = {}
for _, n in ipairs(call('SMEMBERS', P .. ':numbers:' .. ARGV[5])) do
  for _, id in ipairs(call('ZRANGEBYSCORE', group_of(n) .. ':dead', '(' .. ARGV[6], '+inf', 'LIMIT', 0, ARGV[7])) do
    found[#found + 1] = tonumber(id)
  end
end
table.sort(found)
local reply = {}
for at = 1, math.min(#found, tonumber(ARGV[7])) do reply[at] = found[at] end
return reply
"""
)

LETTER: Final = (
    HEAD
    + """
-- ARGV: an id. Returns what a dead letter is, or nothing.
local letter = P .. ':letter:' .. ARGV[5]
local n = call('HGET', letter, 'group')
if not n then return false end
local group = call('HMGET', group_of(n), 'name', 'topic')
return {group[1], group[2], unpack(call('HMGET', letter, 'place', 'attempts', 'reason', 'died', 'topic', 'source', 'id',
  'key', 'data', 'event'))}
"""
)

REDRIVE: Final = (
    HEAD
    + PENDING
    + """
-- ARGV: attempts, the group's name; then ids. Returns the number of the group for each that there was.
local reply, told = {}, {}
for at = 7, #ARGV do
  local letter = P .. ':letter:' .. ARGV[at]
  local l = call('HMGET', letter, 'group', 'place', 'marked', 'bytes', 'key', 'topic', 'source', 'id', 'at', 'data',
    'event', 'attempts')
  local n, place = l[1], l[2]
  local G = n and group_of(n)
  if n and call('HGET', G, 'name') == ARGV[6] then
    local attempt = num(l[12] - l[12] % LIFE + LIFE)
    local r = {attempt = attempt, marked = l[3], done = '0', back = '0', since = num(now), taker = '-'}
    r.key = l[5] or ''
    if #call('XRANGE', EVENTS, place .. '-0', place .. '-0') > 0 then
      call('DEL', letter)
      count_bytes(-tonumber(l[4]))
    else
      -- Back for this group alone; what is there for another already is the same.
      local back = P .. ':back:' .. place
      r.back = '1'
      if call('HINCRBY', back, 'holders', 1) > 1 then
        count_bytes(-tonumber(l[4]))
      else
        call('HSET', back, 'bytes', l[4], 'topic', l[6], 'key', r.key, 'source', l[7], 'id', l[8], 'at', l[9],
          'data', l[10], 'event', l[11])
      end
      call('ZADD', P .. ':backs', num(now), place)
      call('DEL', letter)
    end
    call('ZREM', G .. ':dead', ARGV[at])
    call('ZREM', P .. ':died', ARGV[at])
    if r.key ~= '' and call('HEXISTS', G .. ':heads', r.key) == 1 then
      r.state = 'B'
      put(G, place, r)
      call('ZADD', G .. ':behind', 0, behind(r.key, place))
    else
      if r.key ~= '' then call('HSET', G .. ':heads', r.key, place) end
      make_ready(G, place, r)
    end
    if not told[n] then
      told[n] = true
      tell('g ' .. n)
    end
    reply[#reply + 1] = tonumber(n)
  end
end
return reply
"""
)

POSITIONS: Final = (
    HEAD
    + """
-- Returns of each group its name, topic, position, how many are under way, waiting, dead, dropped and expired.
local reply, positions = {}, call('ZRANGE', P .. ':positions', 0, -1, 'WITHSCORES')
for at = 1, #positions, 2 do
  local G = group_of(positions[at])
  local g = call('HMGET', G, 'name', 'topic', 'dropped', 'expired')
  local out = call('ZCARD', G .. ':out')
  reply[#reply + 1] = {g[1] or '', g[2] or '', positions[at + 1], out, call('HLEN', G .. ':pending') - out,
    call('ZCARD', G .. ':dead'), g[3] or '0', g[4] or '0'}
end
return reply
"""
)

TRIM: Final = (
    HEAD
    + PENDING
    + FREE
    + """
-- ARGV: attempts, for how long events are kept, ids known, dead letters kept, how many bytes, from which entry on to
-- look, how many bytes are wanted beside. Returns whether there is more, whether it is crowded, from where to go on.
local keep_ms, repeat_ms, dead_ms = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local keep_bytes, from = tonumber(ARGV[9]), ARGV[10]
call('DEL', P .. ':nothing')
local over = math.max(bytes - (keep_bytes - math.floor(keep_bytes / 8)), tonumber(ARGV[11]))
local busy, floor = busy_groups(), floor_of()
local freed, is_all = 0, true
if over > 0 then freed, is_all = free(over, busy, floor, 20000) end
local is_crowded = freed < over
if is_crowded and (freed > 0 or not is_all) then return {1, 1, from} end
local gone = now - keep_ms
local forgotten = math.min(gone, now - repeat_ms)
local is_more, stirred, last = false, {}, 0
-- Take an event from the groups that have not settled it; false where one is at it, or asked for it.
local function give_up(place)
  local holders = {}
  for _, n in ipairs(busy) do
    local r = found(group_of(n), place)
    if r and (r.state == 'O' or tonumber(r.since) > gone) then return false end
    if r then holders[#holders + 1] = {n, r} end
  end
  for _, one in ipairs(holders) do
    call('HINCRBY', group_of(one[1]), 'expired', 1)
    if finish(group_of(one[1]), place, one[2]) then stirred[one[1]] = true end
  end
  return true
end
local groups
local function behind_of(place, topic)
  if not groups then
    groups = {}
    local positions = call('ZRANGE', P .. ':positions', 0, -1, 'WITHSCORES')
    for at = 1, #positions, 2 do
      local pattern = call('HGET', group_of(positions[at]), 'pattern')
      groups[#groups + 1] = {positions[at], tonumber(positions[at + 1]), pattern}
    end
  end
  for _, one in ipairs(groups) do
    if one[2] >= tonumber(place) then break end
    if one[3] and string.find(topic, one[3]) then call('HINCRBY', group_of(one[1]), 'expired', 1) end
  end
end
local many = math.max(1, math.min(50, math.floor(100000 / (#busy + 1))))
local entries = call('XRANGE', EVENTS, from, '+', 'COUNT', many)
is_more = #entries == many
for _, entry in ipairs(entries) do
  local place, f = place_of(entry), entry[2]
  local id, step = string.match(entry[1], '^(%d+)%-(%d+)$')
  from = id .. '-' .. num(step + 1)
  if not place then
    if tonumber(id) <= gone and tonumber(id) <= floor then call('XDEL', EVENTS, entry[1]) end
  elseif tonumber(f[10]) > gone then
    is_more = false
    break
  elseif give_up(place) then
    behind_of(place, f[2])
    call('XDEL', EVENTS, entry[1])
    last = math.max(last, tonumber(place))
    count_bytes(-size_of(f))
    if tonumber(f[10]) <= forgotten then call('HDEL', KNOWN, name_of(f[6], f[8]))
    else call('ZADD', P .. ':ids', f[10], name_of(f[6], f[8])) end
  end
end
note_removed(last)
if not is_more then from = '-' end
local ids = call('ZRANGEBYSCORE', P .. ':ids', '-inf', num(forgotten), 'LIMIT', 0, 500)
for _, name in ipairs(ids) do
  call('ZREM', P .. ':ids', name)
  call('HDEL', KNOWN, name)
end
for _, place in ipairs(call('ZRANGEBYSCORE', P .. ':backs', '-inf', num(gone), 'LIMIT', 0, 50)) do give_up(place) end
local letters = call('ZRANGEBYSCORE', P .. ':died', '-inf', num(now - dead_ms), 'LIMIT', 0, 50)
for _, id in ipairs(letters) do
  local l = call('HMGET', P .. ':letter:' .. id, 'group', 'bytes')
  call('DEL', P .. ':letter:' .. id)
  call('ZREM', P .. ':died', id)
  if l[1] then
    call('ZREM', group_of(l[1]) .. ':dead', id)
    count_bytes(-tonumber(l[2]))
  end
end
taker = '-' -- for this sidecar, too
for n in pairs(stirred) do tell('g ' .. n) end
return {(is_more or #ids == 500 or #letters == 50) and 1 or 0, is_crowded and 1 or 0, from}
"""
)
