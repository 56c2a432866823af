-- Does the manifest state the number of traces there are?
SELECT 'manifest.json' AS row, format('kept is {}, traces/ has {} rows', kept, found) AS problem
FROM (SELECT kept, (SELECT count(*) FROM traces) AS found FROM manifest)
WHERE kept <> found
