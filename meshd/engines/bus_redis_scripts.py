"""What a bus on Redis does to its keys, each a script: open, keep, join, take, settle, give back."""

from typing import Final

from meshd.engines.bus_redis_keys import FREE, HEAD, PENDING

OPEN: Final = """
-- ARGV: an era, for a bus that is made; the run of the server. Returns the era and the format.
-- A server that was started again, or another in its place, may have forgotten what it had acknowledged. What was named
-- in that time must not name another thing now: a late SUCCESS would settle what nobody handled.
local P = string.sub(KEYS[1], 1, -6)
local KINDS = {meta = 'hash', events = 'stream', known = 'hash', ids = 'zset', groups = 'hash', positions = 'zset',
  died = 'zset', backs = 'zset', nothing = 'none'}
for name, kind in pairs(KINDS) do
  local is = redis.call('TYPE', P .. ':' .. name).ok
  if is ~= 'none' and is ~= kind then return redis.error_reply('MESHDFOREIGN ' .. P .. ':' .. name) end
end
if redis.call('EXISTS', P .. ':meta') == 0 then
  if redis.call('EXISTS', P .. ':events') == 1 then return redis.error_reply('MESHDFOREIGN ' .. P .. ':events') end
  redis.call('HSET', P .. ':meta', 'format', 1, 'era', ARGV[1], 'latest', 0, 'bytes', 0, 'seen', 0, 'skew', 0,
    'letters', 0, 'groups', 0, 'run', ARGV[2])
end
local meta = redis.call('HMGET', P .. ':meta', 'era', 'format', 'latest', 'bytes', 'seen', 'skew')
if not (meta[1] and tonumber(meta[2]) and tonumber(meta[3]) and tonumber(meta[4]) and tonumber(meta[5])
  and tonumber(meta[6])) then
  return redis.error_reply('MESHDFOREIGN ' .. P .. ':meta')
end
if ARGV[2] ~= '' and redis.call('HGET', P .. ':meta', 'run') ~= ARGV[2] then
  redis.call('DEL', P .. ':nothing')
  for _, name in ipairs({'latest', 'letters', 'groups'}) do redis.call('HINCRBY', P .. ':meta', name, 1000000) end
  redis.call('HSET', P .. ':meta', 'run', ARGV[2])
end
return {meta[1], meta[2]}
"""

KEEP: Final = (
    HEAD
    + """
-- ARGV: how many bytes are kept; then for each event topic, key, source, id, data, event.
-- Returns whether it is crowded, then for each its sequence and whether it was known; or 'full' and who is behind.
local keep_bytes = tonumber(ARGV[5])
local many, size, places, first = (#ARGV - 5) / 6, 0, {}, {}
for i = 1, many do
  local at = 6 * i - 1
  local name = name_of(ARGV[at + 3], ARGV[at + 4])
  places[i] = first[name] and 0 or tonumber(call('HGET', KNOWN, name) or nil)
  if not places[i] then
    first[name] = i
    size = size + 128
    for field = 1, 6 do size = size + #ARGV[at + field] end
  elseif places[i] == 0 then
    places[i] = -first[name]
  end
end
local over = bytes + size - keep_bytes
if size > 0 and over > 0 then
"""
    + FREE
    + """
  local floor, behind = floor_of()
  if free(over, busy_groups(), floor, 2000) < over then
    local group = behind and call('HMGET', group_of(behind), 'name', 'topic')
    return {'full', group and group[1] .. ' (' .. group[2] .. ')' or ''}
  end
end
local reply, topics, is_told = {over > -keep_bytes / 8 and 1 or 0}, {}, {}
local function add(at)
  latest = latest + 1
  return redis.pcall('XADD', EVENTS, num(latest) .. '-0', 'topic', ARGV[at + 1], 'key', ARGV[at + 2], 'source',
    ARGV[at + 3], 'id', ARGV[at + 4], 'at', num(now), 'data', ARGV[at + 5], 'event', ARGV[at + 6])
end
for i = 1, many do
  local at, place = 6 * i - 1, places[i]
  if not place then
    local added = add(at)
    if type(added) == 'table' and string.find(added.err, 'equal or smaller', 1, true) then
      -- Another program has put something there: go on behind it.
      local info = call('XINFO', 'STREAM', EVENTS)
      for n = 1, #info, 2 do
        if info[n] == 'last-generated-id' then latest = tonumber(string.match(info[n + 1], '^%d+')) end
      end
      if latest >= 2^53 - 1 then return redis.error_reply('MESHDFOREIGN ' .. EVENTS) end
      added = add(at)
    end
    if type(added) == 'table' then return redis.error_reply(added.err) end
    call('HSET', KNOWN, name_of(ARGV[at + 3], ARGV[at + 4]), num(latest))
    places[i] = latest
    local topic = ARGV[at + 1]
    if not is_told[topic] then is_told[topic], topics[#topics + 1] = true, topic end
  elseif place < 0 then
    places[i] = places[-place]
  end
  reply[#reply + 1] = places[i]
  reply[#reply + 1] = place and 1 or 0
end
if size > 0 then
  call('HSET', META, 'latest', num(latest), 'bytes', num(bytes + size))
  tell('e ' .. table.concat(topics, ' '))
end
return reply
"""
)

JOIN: Final = (
    HEAD
    + """
-- ARGV: name, topic, its pattern, how many groups there may be, where to begin ('now', 'oldest', 'at', 'after'), and at
-- how many milliseconds or behind which place. Returns a number, or 'full', or what speaks against that place: the last
-- place of the bus, and whether all behind it is kept.
local name, topic = ARGV[5], ARGV[6]
local number = call('HGET', P .. ':groups', name .. ' ' .. topic)
if number then return tonumber(number) end
if call('HLEN', P .. ':groups') >= tonumber(ARGV[8]) then return 'full' end
local cursor, position = '0-0', 0
local function own_from(place)
  -- Return the first event from a place on, and when it was kept; what another program put there is passed over.
  local from = num(place) .. '-0'
  while true do
    local entries = call('XRANGE', EVENTS, from, '+', 'COUNT', 20)
    for _, entry in ipairs(entries) do
      if place_of(entry) then return tonumber(place_of(entry)), tonumber(entry[2][10]) end
      local id, step = string.match(entry[1], '^(%d+)%-(%d+)$')
      from = id .. '-' .. num(step + 1)
    end
    if #entries < 20 then return end
  end
end
local begins, value = ARGV[9], tonumber(ARGV[10])
if begins == 'after' then
  local is_whole = value == 0 or value >= (tonumber(call('HGET', META, 'removed') or nil) or 0)
  if value > latest or not is_whole then return {num(latest), is_whole and 1 or 0} end
  position = value
  cursor = num(value) .. '-0'
elseif begins == 'at' then
  local low, high = own_from(0) or latest + 1, latest + 1
  while low < high do
    local middle = math.floor((low + high) / 2)
    local place, at = own_from(middle)
    if not place or at >= value then high = middle else low = place + 1 end
  end
  position = low - 1
  cursor = num(position) .. '-0'
  if position >= latest then begins = 'now' end
end
if begins == 'now' then
  position = latest
  cursor = num(latest) .. '-0'
  local info = call('EXISTS', EVENTS) == 1 and call('XINFO', 'STREAM', EVENTS) or {}
  for n = 1, #info, 2 do
    if info[n] == 'last-generated-id' then cursor = info[n + 1] end
  end
end
number = num(call('HINCRBY', META, 'groups', 1))
call('HSET', group_of(number), 'name', name, 'topic', topic, 'pattern', ARGV[7], 'cursor', cursor, 'dropped', 0,
  'expired', 0)
call('HSET', P .. ':groups', name .. ' ' .. topic, number)
call('SADD', P .. ':numbers:' .. name, number)
call('ZADD', P .. ':positions', num(position), number)
return tonumber(number)
"""
)

TAKE: Final = (
    HEAD
    + PENDING
    + """
-- ARGV: attempts, the group; then for each event that is wanted how many milliseconds its handler has.
-- Returns whether there is more, in how many milliseconds something is due or -1, events, and new dead letters.
local n, wanted = ARGV[6], #ARGV - 6
local G = group_of(n)
local group = call('HMGET', G, 'cursor', 'pattern', 'alarm')
if not (group[1] and group[2]) then return redis.error_reply('MESHDGROUP ' .. G) end
call('DEL', P .. ':nothing')
local function first(set) return tonumber(call('ZRANGE', G .. set, 0, 0, 'WITHSCORES')[2]) or huge end
-- What is ready, out or waits is among what is pending; most takes find nothing there.
local is_any = call('EXISTS', G .. ':pending') == 1
local due_out, due_wait = is_any and first(':out') or huge, is_any and first(':wait') or huge
if due_wait <= now then
  for _, place in ipairs(call('ZRANGEBYSCORE', G .. ':wait', '-inf', num(now), 'LIMIT', 0, 500)) do
    local r = found(G, place)
    call('ZREM', G .. ':wait', place)
    if r then make_ready(G, place, r) end
  end
  due_wait = first(':wait')
end
if due_out <= now then
  for _, place in ipairs(call('ZRANGEBYSCORE', G .. ':out', '-inf', num(now), 'LIMIT', 0, 500)) do
    local r = found(G, place)
    if r then lose(n, place, r) else call('ZREM', G .. ':out', place) end
  end
  due_out = first(':out')
end
local out, weight, soonest = {}, 0, huge
local function begin(place, r, f)
  local ends = now + ARGV[7 + #out]
  r.attempt, r.state, r.taker = num(r.attempt + 1), 'O', taker
  put(G, place, r)
  call('ZADD', G .. ':out', num(ends), place)
  soonest = math.min(soonest, ends)
  weight = weight + #f[12]
  out[#out + 1] = {place, r.attempt, r.marked, f[2], f[4], f[6], f[8], f[12], f[14]}
end
local WEIGHT_MAX = 4194304
for _, place in ipairs(is_any and call('ZRANGE', G .. ':ready', 0, wanted - 1) or {}) do
  if weight >= WEIGHT_MAX then break end
  local r = found(G, place)
  local f = r and body(place, r)
  if f or not r then
    call('ZREM', G .. ':ready', place)
    if r then begin(place, r, f) end
  else
    bury(n, place, r, 'its record is damaged')
  end
end
local is_more = #buried > 0 or weight >= WEIGHT_MAX
local cursor, looked, seen_bytes = group[1], 0, 0
local many = math.min(wanted - #out, 16)
while #out < wanted and weight < WEIGHT_MAX and many > 0 do
  if looked >= 1000 or seen_bytes > 4 * WEIGHT_MAX then is_more = true break end
  local id, step = string.match(cursor, '^(%d+)%-(%d+)$')
  local from = tonumber(step) < 2^53 and id .. '-' .. num(step + 1) or num(id + 1) .. '-0'
  local entries = call('XRANGE', EVENTS, from, '+', 'COUNT', many)
  for _, entry in ipairs(entries) do
    local f = entry[2]
    local place = place_of(entry)
    if not place then
      latest = call('HINCRBY', META, 'latest', 1)
      local what = {'', '', '', '', '', '', '', '', '', num(now), '', string.sub(cjson.encode(f), 1, 1048576), '', ''}
      for at = 1, #f, 2 do if f[at] == 'topic' then what[2] = string.sub(f[at + 1], 1, 255) end end
      lay(n, num(latest), 0, 0, 'another program put it into the stream', what)
    elseif string.find(f[2], group[2]) then
      if #out == wanted or weight >= WEIGHT_MAX then break end
      local key = f[4]
      local r = {state = 'B', attempt = 0, marked = '0', done = '0', back = '0', since = '0', taker = '-', key = key}
      if key ~= '' and call('HEXISTS', G .. ':heads', key) == 1 then
        put(G, place, r)
        call('ZADD', G .. ':behind', 0, behind(key, place))
      else
        if key ~= '' then call('HSET', G .. ':heads', key, place) end
        begin(place, r, f)
      end
    end
    cursor = entry[1]
    looked = looked + 1
    seen_bytes = seen_bytes + #f[#f] + #(f[12] or '')
  end
  if #entries < many then break end
  many = math.max(1, math.min(256, math.floor(1048576 * looked / (seen_bytes + 1)) + 1))
end
if weight >= WEIGHT_MAX then is_more = true end
if cursor ~= group[1] then
  call('HSET', G, 'cursor', cursor)
  call('ZADD', P .. ':positions', string.match(cursor, '^%d+'), n)
end
local alarm = announce(n, tonumber(group[3] or nil), soonest)
local due = math.min(due_out, due_wait, soonest)
if alarm and alarm > now then due = math.min(due, alarm) end
return {is_more and 1 or 0, due == huge and -1 or math.max(0, due - now), out, buried}
"""
)

SETTLE: Final = (
    HEAD
    + PENDING
    + """
-- ARGV: attempts, the group; then for each its place, number, verdict, how long to wait, reason.
-- Returns for each whether it counted, whether it set another free, in how many milliseconds it is due or -1; and last
-- what became a dead letter.
local n = ARGV[6]
local G = group_of(n)
call('DEL', P .. ':nothing')
local function deferred(number) return num(number + 1000 * LIFE - 1) end -- as meshd.engines.bus_shelf has it
local reply, is_freed, soonest = {}, false, huge
for at = 7, #ARGV, 5 do
  local place, number, verdict, wait, reason = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
  local r = found(G, place)
  local counted, freed, due = r and r.done == '0', false, -1
  local aside = (verdict == 'retry' or verdict == 'defer') and r and r.state == 'W' and r.attempt == deferred(number)
  if aside and verdict == 'retry' then r.attempt = num(r.attempt + 1) end
  if not r or ((r.state ~= 'O' or r.attempt ~= number) and verdict ~= 'success' and not aside) then
    counted = false
  elseif r.state == 'O' and r.attempt ~= number then
    -- Somebody else is at it: the next of its key waits until that has ended, however it ends.
    r.done = '1'
    put(G, place, r)
  elseif not aside and (r.state ~= 'O' or r.done == '1' or verdict == 'success' or verdict == 'drop') then
    if verdict == 'drop' and counted then call('HINCRBY', G, 'dropped', 1) end
    freed = finish(G, place, r)
  elseif verdict == 'damaged' or (verdict == 'retry' and number % LIFE >= attempts_max) then
    freed = bury(n, place, r, verdict == 'damaged' and 'its record is damaged' or reason)
  else
    leave(G, place, r)
    r.state = 'W'
    if verdict == 'defer' then r.attempt = deferred(number) end
    put(G, place, r)
    call('ZADD', G .. ':wait', num(now + wait), place)
    due = tonumber(wait)
    soonest = math.min(soonest, now + wait)
  end
  is_freed = is_freed or freed
  reply[#reply + 1] = {counted and 1 or 0, freed and 1 or 0, due}
end
if is_freed then tell('g ' .. n) end
if soonest < huge then announce(n, tonumber(call('HGET', G, 'alarm') or nil), soonest) end
reply[#reply + 1] = buried
return reply
"""
)

GIVE_BACK: Final = (
    HEAD
    + PENDING
    + """
-- ARGV: attempts, the group, how; then place, number and taker of each. How: 'lost', 'unseen', or 'others': what this
-- taker has out beside these was never seen, as the reply that brought it was lost. What is said again is another's by
-- now where the first time was heard: an attempt that was unseen, and the next one, have the same number.
local n, how = ARGV[6], ARGV[7]
local G = group_of(n)
call('DEL', P .. ':nothing')
local given = {}
for at = 8, #ARGV, 3 do given[#given + 1] = {ARGV[at], ARGV[at + 1], ARGV[at + 2]} end
if how == 'others' then
  local mine = {}
  for _, one in ipairs(given) do mine[one[1] .. ' ' .. one[2]] = true end
  given = {}
  for _, place in ipairs(call('ZRANGE', G .. ':out', 0, -1)) do
    local r = found(G, place)
    if r and r.taker == taker and not mine[place .. ' ' .. r.attempt] then
      given[#given + 1] = {place, r.attempt, taker}
    end
  end
end
for _, one in ipairs(given) do
  local place = one[1]
  local r = found(G, place)
  if r and r.state == 'O' and r.attempt == one[2] and r.taker == one[3] then
    if how ~= 'lost' and r.done == '0' then
      leave(G, place, r)
      r.attempt = num(r.attempt - 1)
      make_ready(G, place, r)
    else
      lose(n, place, r)
    end
  end
end
if #given > 0 then tell('g ' .. n) end
return buried
"""
)
