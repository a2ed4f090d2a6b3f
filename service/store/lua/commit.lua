-- Sets each record whose stored revision is the one expected; says of each whether it is set.
-- KEYS: the sessions. ARGV, for each: expected revision ('' where nothing is stored), record, when to forget it (ms).
-- A record's revision is its bytes 8 to 15. The same commit sent twice, as after a broken connection, is applied once.
local done = {}
for i, key in ipairs(KEYS) do
  local expected, record, forget = ARGV[3 * i - 2], ARGV[3 * i - 1], ARGV[3 * i]
  local stored = redis.call('GETRANGE', key, 8, 15)
  if stored == expected then
    redis.call('SET', key, record, 'PXAT', forget)
  end
  done[i] = (stored == expected or stored == string.sub(record, 9, 16)) and 1 or 0
end
return done
