-- Deletes a record if its stored revision is the expected one. KEYS: the session. ARGV: the revision.
if redis.call('GETRANGE', KEYS[1], 8, 15) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
