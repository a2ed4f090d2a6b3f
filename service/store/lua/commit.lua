-- Sets each record whose stored revision is the expected one; returns 1 for each record that is set, else 0.
-- KEYS: the sessions. ARGV, for each: expected revision ('' if nothing is stored), record, time of deletion (ms).
-- A record's revision is its bytes 8 to 15. A commit that is sent twice, as after a lost connection, is applied once.
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
