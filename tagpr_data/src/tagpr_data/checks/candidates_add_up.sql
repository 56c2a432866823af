-- Does the manifest count every candidate as kept or as rejected?
SELECT 'manifest.json' AS row,
       format('candidates is {}, kept {} + rejected {}', candidates, kept, rejected) AS problem
FROM (SELECT candidates, kept, (SELECT coalesce(sum(rows), 0)::BIGINT FROM manifest_rejected) AS rejected FROM manifest)
WHERE candidates <> kept + rejected
