-- A request of a node of a hub about its members. It does what `PresenceBackend` says.
--
-- KEYS: the stream, and the keys of `PresenceKeys` in their order.
-- ARGV: the node, the number, the acknowledged number, the node timeout in ms, the maximum numbers of members of a topic and in all, whether the
-- events have a topic ('1' or '0'), the suffix of this topic, the number of arguments for trimming the stream, these arguments, and for each
-- change the action, the topic, the key of the member, and the value as JSON.
--
-- A member is the topic, a line break and its key. A topic has no line break. Its record is the number of nodes that hold it, a space and its
-- value.
local stream, nodes, numbers, holds, members, topics = unpack(KEYS)
local node, number, acknowledged = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local timeout, max_members, max_total = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local has_topic, suffix, trim_count = ARGV[7] == '1', ARGV[8], tonumber(ARGV[9])
local first_change = 10 + trim_count
local MAX_REMOVED = 64

local function integer(value) return string.format('%.0f', value) end

-- A value of another program counts as 0.
local function number_in(hash, field) return tonumber(redis.call('HGET', hash, field) or 0) or 0 end

-- A command that fails does not undo the commands before it. So a key of another type fails before anything has changed.
local exists = {}
for index, expected in ipairs({'stream', 'zset', 'hash', 'zset', 'hash', 'hash'}) do
  local found = redis.call('TYPE', KEYS[index]).ok
  if found ~= expected and found ~= 'none' then
    return redis.error_reply('WRONGTYPE ' .. KEYS[index] .. ' is a ' .. found)
  end
  exists[KEYS[index]] = found == expected
end

-- A member that a node holds is in each of these keys. If one of them is lost, what is left is wrong: then all nodes begin anew.
local is_complete = exists[nodes] and exists[numbers] and exists[members] and exists[topics]
if exists[holds] and not is_complete or exists[topics] and not exists[holds] then
  for _, key in ipairs({nodes, numbers, holds, members, topics}) do redis.call('DEL', key) end
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local ends_at = integer(now + timeout)

-- The name of a node is never 'at' or 'since'.
local last_at = number_in(numbers, 'at')
redis.call('HSET', numbers, 'at', integer(now))
local since = number_in(numbers, 'since')
if since == 0 or since > now then redis.call('HSET', numbers, 'since', integer(now)) end
if now < last_at or now - last_at > timeout / 2 then
  for _, alive in ipairs(redis.call('ZRANGEBYSCORE', nodes, '(0', '+inf')) do
    redis.call('ZADD', nodes, ends_at, alive)
  end
end

local last_number = number_in(numbers, node)
if last_number >= number or last_number < acknowledged then return {1} end
redis.call('HSET', numbers, node, ARGV[2])
redis.call('ZADD', nodes, ends_at, node)

local function quote(text) return (string.gsub(cjson.encode(text), '\\/', '/')) end

local function publish(event_type, topic, key, value)
  local data = '{"member":' .. quote(key)
  if value then data = data .. ',"value":' .. value end
  local entry = {'XADD', stream}
  for index = 10, first_change - 1 do entry[#entry + 1] = ARGV[index] end
  entry[#entry + 1] = '*'
  if has_topic then
    entry[#entry + 1] = 'topic'
    entry[#entry + 1] = topic .. suffix
  end
  for _, field in ipairs({'data', data .. '}', 'type', event_type, 'format', 'json', 'members', topic}) do
    entry[#entry + 1] = field
  end
  redis.call(unpack(entry))
end

local function count_holds(member)
  local count = 0
  for _, holder in ipairs(redis.call('ZRANGEBYSCORE', nodes, '-inf', '+inf')) do
    local hold = '[' .. holder .. '\n' .. member
    count = count + #redis.call('ZRANGEBYLEX', holds, hold, hold)
  end
  return count
end

-- Returns the number of nodes that hold a member, and its value. A record of another program has no value.
local function read_record(member)
  local record = redis.call('HGET', members, member)
  if not record then return 0 end
  local count, value = string.match(record, '^([1-9]%d*) (.*)$')
  if count then return tonumber(count), value end
  return count_holds(member)
end

local function set_topic_count(topic, count)
  if count > 0 then
    redis.call('HSET', topics, topic, integer(count))
  else
    redis.call('HDEL', topics, topic)
  end
end

local function release(holder, topic, key)
  local member = topic .. '\n' .. key
  local count, value = read_record(member)
  if redis.call('ZREM', holds, holder .. '\n' .. member) == 0 or count == 0 then return end
  if count > 1 then
    if value then redis.call('HSET', members, member, integer(count - 1) .. ' ' .. value) end
    return
  end
  redis.call('HDEL', members, member)
  set_topic_count(topic, number_in(topics, topic) - 1)
  publish('hub.leave', topic, key)
end

local function set(action, topic, key, value)
  local member = topic .. '\n' .. key
  local count, old_value = read_record(member)
  if count > 0 then
    if action ~= 'update' then count = count + redis.call('ZADD', holds, 0, node .. '\n' .. member) end
    local is_new = not old_value or (action ~= 'keep' and value ~= old_value)
    redis.call('HSET', members, member, integer(count) .. ' ' .. (is_new and value or old_value))
    if is_new then publish('hub.update', topic, key, value) end
    return true
  end
  if action == 'update' then return true end
  local topic_count = number_in(topics, topic)
  if topic_count >= max_members or redis.call('HLEN', members) >= max_total then return false end
  redis.call('ZADD', holds, 0, node .. '\n' .. member)
  redis.call('HSET', members, member, '1 ' .. value)
  set_topic_count(topic, topic_count + 1)
  publish('hub.join', topic, key, value)
  return true
end

local answer = {0, 0}
for index = first_change, #ARGV, 4 do
  local action, topic, key, value = ARGV[index], ARGV[index + 1], ARGV[index + 2], ARGV[index + 3]
  if action == 'leave' then
    release(node, topic, key)
  elseif not set(action, topic, key, value) then
    answer[#answer + 1] = (index - first_change) / 4
  end
end

local removed = 0
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', nodes, '-inf', integer(now))) do
  -- From now on, the node has lost its lease, even if not all of its members are removed yet.
  redis.call('HDEL', numbers, gone)
  redis.call('ZADD', nodes, 0, gone)
  local prefix = gone .. '\n'
  local held = redis.call('ZRANGEBYLEX', holds, '[' .. prefix, '(' .. gone .. '\11', 'LIMIT', 0, MAX_REMOVED - removed)
  for _, hold in ipairs(held) do
    local topic, key = string.match(string.sub(hold, #prefix + 1), '^([^\n]*)\n(.*)$')
    release(gone, topic, key)
  end
  removed = removed + #held
  if removed >= MAX_REMOVED then
    answer[2] = 1
    break
  end
  redis.call('ZREM', nodes, gone)
end
return answer
