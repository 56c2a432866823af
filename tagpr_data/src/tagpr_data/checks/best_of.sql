-- Are no more traces kept of one prompt than the manifest says?
SELECT prompt_hash AS row, format('{} traces kept, at most {}', count(*), (SELECT best_of FROM manifest)) AS problem
FROM traces
GROUP BY prompt_hash
HAVING count(*) > (SELECT best_of FROM manifest)
