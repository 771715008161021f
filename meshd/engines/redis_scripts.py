"""What runs inside a Redis: it runs one script at a time, so within each nothing comes between a look and a change.

A record is a string `m1 VERSION VALUE`; whatever else is found in its place is another program's, or damage, and is
never taken for "absent". The version comes from one counter. A script changes nothing before the last thing that can
fail: the counter is counted up first (a full server refuses there), the index next, the record after it.
"""

from typing import Final

_FOUND: Final = """
local function found(record, place)
  local packed = redis.pcall('GET', record)
  if packed == false then return nil, '0', nil end
  if type(packed) == 'string' then
    local version = string.match(packed, '^m1 (%d+) ')
    if version then return packed, version, nil end
  end
  return nil, nil, redis.error_reply('MESHDBAD ' .. place)
end
local function put(counter, record, index, key, channel, version, value)
  local now = redis.call('INCR', counter)
  if now <= tonumber(version) then return redis.error_reply('MESHDCOUNTER') end
  redis.call('ZADD', index, 0, key)
  redis.call('SET', record, 'm1 ' .. string.format('%.0f', now) .. ' ' .. value)
  redis.call('PUBLISH', channel, key)
  return nil
end
"""

WRITE: Final = (
    _FOUND
    + """
-- KEYS: the counter; then for each change its record and the index of its space.
-- ARGV: for each change its key, channel, expected version ('' for any) and '=' with the value, or '' to delete.
local made = {}
for n = 1, (#KEYS - 1) / 2 do
  local record, index = KEYS[2 * n], KEYS[2 * n + 1]
  local key, channel, expected, value = ARGV[4 * n - 3], ARGV[4 * n - 2], ARGV[4 * n - 1], ARGV[4 * n]
  local packed, version, bad = found(record, n)
  if bad then return bad end
  if expected ~= '' and expected ~= version then
    made[n] = 0
  else
    made[n] = 1
    if value ~= '' then
      bad = put(KEYS[1], record, index, key, channel, version, string.sub(value, 2))
      if bad then return bad end
    elseif packed then
      redis.call('ZREM', index, key)
      redis.call('DEL', record)
      redis.call('PUBLISH', channel, key)
    end
  end
end
return made
"""
)

TAKE: Final = (
    _FOUND
    + """
-- KEYS: the counter, the record, the index of its space. ARGV: key, channel, amount, ceiling.
-- Lua's numbers are exact up to 2^53 only: an amount is two halves of nine digits.
local function halves(digits)
  local sign = 1
  if string.sub(digits, 1, 1) == '-' then sign, digits = -1, string.sub(digits, 2) end
  local low = tonumber(string.sub(digits, -9))
  local high = tonumber(string.sub(digits, 1, -10)) or 0
  return sign * high, sign * low
end
local packed, version, bad = found(KEYS[2], 1)
if bad then return bad end
local value = packed and string.sub(packed, #version + 5) or '0'
if not string.match(value, '^%d+$') or #value > 18 then return redis.error_reply('MESHDNUMBER') end
local high, low = halves(value)
local more_high, more_low = halves(ARGV[3])
local most_high, most_low = halves(ARGV[4])
high, low = high + more_high, low + more_low
if low >= 1e9 then high, low = high + 1, low - 1e9 elseif low < 0 then high, low = high - 1, low + 1e9 end
if high > most_high or (high == most_high and low > most_low) then return false end
if high < 0 then return redis.error_reply('MESHDNEGATIVE') end
local sum = string.format('%.0f', low)
if high > 0 then sum = string.format('%.0f%09.0f', high, low) end
bad = put(KEYS[1], KEYS[2], KEYS[3], ARGV[1], ARGV[2], version, sum)
if bad then return bad end
return sum
"""
)
