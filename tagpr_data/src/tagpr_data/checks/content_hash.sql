-- Is each manifest's content hash that of its tasks, tag set and files?
SELECT path AS row, format('content_hash is {}, it should be {}', stated, found) AS problem
FROM manifest_hashes
WHERE stated <> found
