-- Are the manifest's claims and grounded claims the sums over all traces?
SELECT 'manifest.json' AS row,
       format('grounded_claims/claims is {}/{}, the traces give {}/{}', grounded_claims, claims, found_grounded, found)
           AS problem
FROM manifest, (SELECT coalesce(sum(claims), 0)::BIGINT AS found,
                       coalesce(sum(grounded_claims), 0)::BIGINT AS found_grounded FROM traces)
WHERE claims <> found OR grounded_claims <> found_grounded
