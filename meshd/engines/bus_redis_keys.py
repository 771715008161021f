"""What runs inside a Redis that is a bus: one script at a time, so nothing comes between a look and a change.

    P:meta              hash: the format, counters, the clock, the last place whose event was removed; the one key that
                        scripts are given
    P:events            stream; an event of sequence 17 is the entry 17-0 with the fields of FIELDS
    P:known             hash: which (source, id) is which sequence; P:ids, by time, of those whose event is gone
    P:groups            hash of `NAME TOPIC` to a number N; P:numbers:NAME, P:positions: sets of those
    P:group:N           hash: how far the group has come, and what its next alarm is
    P:group:N:pending   hash of a sequence to `STATE ATTEMPT MARKED DONE BACK SINCE TAKER KEY`. States: R ready,
                        O out with a handler, W waits for its retry, B behind another of its key. ATTEMPT is a
                        number: of one that was redriven they go on from beyond the next million
    P:group:N:ready, :out, :wait     sorted sets of them, by sequence, by the handler's end, by when the retry is due
    P:group:N:heads, :behind         which of a key comes first; sorted set of `LENGTH:KEY:SEQUENCE` of those behind it
    P:letter:I          hash: a dead letter; P:group:N:dead by id, P:died by time
    P:back:17           hash: an event that was redriven when the stream had it no more; P:backs by time
    P:wake:DB           channel: `TAKER e TOPIC...` what was published, `TAKER g N` a group to look at again,
                        `TAKER d N MS` something of a group is due in so many milliseconds

Times are milliseconds of the server's own clock, made steady: where that is set back, `skew` makes up for it. A full
server refuses the first write of a script that needs memory, and none after it: so what publishes begins with such a
write, and whatever hands out and settles, which makes room in the end, with one that needs none (`P:nothing`).
"""

from typing import Final

FIELDS: Final = ("topic", "key", "source", "id", "at", "data", "event")
"""Of an entry, in this order: `at` in milliseconds; `event` is the MessagePack of the attributes without the others."""

HEAD: Final = """
-- ARGV of all: the era, a time in place of the server's, who asks, the channel.
local call, huge = redis.call, math.huge
local META, P, taker, channel = KEYS[1], string.sub(KEYS[1], 1, -6), ARGV[3], ARGV[4]
local EVENTS, KNOWN = P .. ':events', P .. ':known'
local function num(n) return string.format('%.0f', n) end
local meta = call('HMGET', META, 'era', 'latest', 'bytes', 'seen', 'skew')
if meta[1] ~= ARGV[1] then return redis.error_reply('MESHDERA') end
local latest, bytes, seen = tonumber(meta[2]), tonumber(meta[3]), tonumber(meta[4])
local now = tonumber(ARGV[2])
if not now then
  local time = call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end
now = now + meta[5]
if now < seen then
  redis.pcall('HSET', META, 'skew', num(meta[5] + seen - now))
  now = seen
elseif now > seen + 1000 then
  redis.pcall('HSET', META, 'seen', num(now))
end
local function count_bytes(more)
  bytes = bytes + more
  if more ~= 0 then call('HINCRBY', META, 'bytes', num(more)) end
end
local function tell(words) call('PUBLISH', channel, taker .. ' ' .. words) end
-- Fields of an entry lie at even places: 2 topic, 4 key, 6 source, 8 id, 10 at, 12 data, 14 event.
local function place_of(entry)
  local f = entry[2]
  if #f == 14 and f[1] == 'topic' and f[3] == 'key' and f[5] == 'source' and f[7] == 'id' and f[9] == 'at'
    and f[11] == 'data' and f[13] == 'event' and tonumber(f[10]) then
    return string.match(entry[1], '^(%d+)%-0$')
  end
end
local function size_of(f) return 128 + #f[2] + #f[4] + #f[6] + #f[8] + #f[12] + #f[14] end
local function name_of(source, id) return #source .. ':' .. source .. id end
local function group_of(n) return P .. ':group:' .. n end
"""

PENDING: Final = """
local attempts_max, LIFE = tonumber(ARGV[5]), 1000000 -- as meshd.engines.bus_shelf has it
local buried, UNHEARD = {}, 'nothing was heard of the last attempt' -- as meshd.engines.bus_shelf has it
local function split(record)
  local r = {}
  r.state, r.attempt, r.marked, r.done, r.back, r.since, r.taker, r.key =
    string.match(record, '^(%u) (%d+) ([01]) ([01]) ([01]) (%d+) (%S+) (.*)$')
  return r
end
local function put(G, place, r)
  call('HSET', G .. ':pending', place, table.concat(
    {r.state, r.attempt, r.marked, r.done, r.back, r.since, r.taker, r.key}, ' '))
end
local function found(G, place)
  local record = call('HGET', G .. ':pending', place)
  local r = record and split(record)
  if r and not r.state then error('MESHDFOREIGN ' .. G .. ':pending', 0) end
  return r
end
local function behind(key, place) return #key .. ':' .. key .. ':' .. string.format('%020.0f', tonumber(place)) end
local SETS = {R = ':ready', O = ':out', W = ':wait'}
local function leave(G, place, r)
  if SETS[r.state] then call('ZREM', G .. SETS[r.state], place)
  else call('ZREM', G .. ':behind', behind(r.key, place)) end
end
local function make_ready(G, place, r)
  r.state = 'R'
  put(G, place, r)
  call('ZADD', G .. ':ready', place, place)
end
local function finish(G, place, r)
  call('HDEL', G .. ':pending', place)
  leave(G, place, r)
  if r.back == '1' and call('HINCRBY', P .. ':back:' .. place, 'holders', -1) <= 0 then
    count_bytes(-(tonumber(call('HGET', P .. ':back:' .. place, 'bytes')) or 0))
    call('DEL', P .. ':back:' .. place)
    call('ZREM', P .. ':backs', place)
  end
  if r.key == '' or r.state == 'B' then return false end
  local start = #r.key .. ':' .. r.key .. ':'
  local one = call('ZRANGEBYLEX', G .. ':behind', '[' .. start .. '0', '[' .. start .. ':', 'LIMIT', 0, 1)[1]
  local other = one and num(tonumber(string.sub(one, #start + 1)))
  local next = one and found(G, other)
  if not next then
    call('HDEL', G .. ':heads', r.key)
    return false
  end
  call('ZREM', G .. ':behind', one)
  call('HSET', G .. ':heads', r.key, other)
  make_ready(G, other, next)
  return true
end
local function body(place, r)
  if r.back == '1' then
    local v = call('HMGET', P .. ':back:' .. place, 'topic', 'key', 'source', 'id', 'at', 'data', 'event')
    if not v[7] then return nil end
    return {'', v[1], '', v[2], '', v[3], '', v[4], '', v[5], '', v[6], '', v[7]}
  end
  local entry = call('XRANGE', EVENTS, place .. '-0', place .. '-0')[1]
  if entry and place_of(entry) then return entry[2] end
end
local function lay(n, place, attempts, marked, reason, f)
  local letter = num(call('HINCRBY', META, 'letters', 1))
  call('HSET', P .. ':letter:' .. letter, 'group', n, 'place', place, 'attempts', attempts, 'marked', marked,
    'reason', reason, 'died', num(now), 'bytes', size_of(f), 'topic', f[2], 'key', f[4], 'source', f[6], 'id', f[8],
    'at', f[10], 'data', f[12], 'event', f[14])
  call('ZADD', group_of(n) .. ':dead', letter, letter)
  call('ZADD', P .. ':died', num(now), letter)
  count_bytes(size_of(f))
  buried[#buried + 1] = {place, letter, reason == UNHEARD and 1 or 0}
end
local EMPTY = {'', '', '', '', '', '', '', '', '', '0', '', '', '', ''}
local function bury(n, place, r, reason, f)
  local G = group_of(n)
  f = f or body(place, r) or EMPTY
  if f == EMPTY then f[4] = r.key end
  lay(n, place, r.attempt, r.marked, reason, f)
  return finish(G, place, r)
end
local function lose(n, place, r)
  local G = group_of(n)
  r.marked = '1'
  if r.done == '1' then return finish(G, place, r) end
  if r.attempt % LIFE >= attempts_max then return bury(n, place, r, UNHEARD) end
  leave(G, place, r)
  make_ready(G, place, r)
  return true
end
-- Everybody knows of the alarm that comes first; whoever plans an earlier one tells it.
local function announce(n, alarm, due)
  if due == huge then return alarm end
  if not alarm or alarm <= now or due < alarm then
    call('HSET', group_of(n), 'alarm', num(due))
    tell('d ' .. n .. ' ' .. num(math.max(0, due - now)))
    return due
  end
  return alarm
end
"""

FREE: Final = """
local function busy_groups()
  local found = {}
  for _, n in ipairs(call('ZRANGE', P .. ':positions', 0, -1)) do
    if call('EXISTS', group_of(n) .. ':pending') == 1 then found[#found + 1] = n end
  end
  return found
end
local function floor_of()
  local behind = call('ZRANGE', P .. ':positions', 0, 0, 'WITHSCORES')
  return tonumber(behind[2]) or huge, behind[1]
end
-- Behind what was removed, no new group can begin any more.
local function note_removed(place)
  if place > (tonumber(call('HGET', META, 'removed') or nil) or 0) then call('HSET', META, 'removed', num(place)) end
end
-- Let go of events that no group needs, from where that ended the last time. Nobody else is served meanwhile, so of
-- those that are needed still only so many are looked at. Returns how many bytes that made free, and whether all were
-- looked at.
local function free(wanted, busy, floor, budget)
  local began = call('HGET', META, 'freeing') or '-'
  local freed, from, rounds, last = 0, began, 1, 0
  while freed < wanted and budget > 0 do
    local entries, is_end = call('XRANGE', EVENTS, from, '+', 'COUNT', 20), false
    for _, entry in ipairs(entries) do
      local place, f = place_of(entry), entry[2]
      local id, step = string.match(entry[1], '^(%d+)%-(%d+)$')
      if tonumber(id) > floor then is_end = true break end
      if freed >= wanted then break end
      budget = budget - 1 - #busy
      from = id .. '-' .. num(step + 1)
      local is_held = false
      if place then
        for _, n in ipairs(busy) do
          if call('HEXISTS', group_of(n) .. ':pending', place) == 1 then is_held = true break end
        end
      end
      if not is_held then
        call('XDEL', EVENTS, entry[1])
        if place then
          call('ZADD', P .. ':ids', f[10], name_of(f[6], f[8]))
          freed = freed + size_of(f)
          last = math.max(last, tonumber(place))
        end
      end
    end
    if is_end or #entries < 20 and freed < wanted then
      from = '-'
      if rounds == 2 or began == '-' then rounds = 3 break end
      rounds = 2
    end
  end
  redis.pcall('HSET', META, 'freeing', from)
  note_removed(last)
  count_bytes(-freed)
  return freed, rounds == 3
end
"""
