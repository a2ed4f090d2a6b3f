-- Moves a record if its stored revision is the expected one, without expiry. KEYS: the session, the new key.
-- ARGV: the revision.
if redis.call('GETRANGE', KEYS[1], 8, 15) == ARGV[1] and redis.call('EXISTS', KEYS[1]) == 1 then
  redis.call('RENAME', KEYS[1], KEYS[2])
  redis.call('PERSIST', KEYS[2])
  return 1
end
return 0
