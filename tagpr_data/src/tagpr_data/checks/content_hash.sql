-- Is the manifest's content hash that of its tasks, tag set and files?
SELECT 'manifest.json' AS row, format('content_hash is {}, it should be {}', content_hash, found_content_hash) AS problem
FROM manifest
WHERE content_hash <> found_content_hash
