-- Removes a record whose stored revision is the one expected. KEYS: the session. ARGV: the revision.
if redis.call('GETRANGE', KEYS[1], 8, 15) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
