-- Are the numbers of every row within the ranges of their record, and is the end of the completion a known one?
SELECT id AS row,
       format('k {}, attempt {}, sampling {}, finish_reason {}, tokens {}/{}', k, attempt, sampling::VARCHAR,
              left(finish_reason, 20), input_tokens, output_tokens) AS problem
FROM attempts
WHERE k < 0 OR attempt < 0 OR coalesce(input_tokens, 0) < 0 OR coalesce(output_tokens, 0) < 0
   OR sampling.temperature IS NULL OR NOT sampling.temperature BETWEEN 0 AND 1e9
   OR sampling.top_p IS NULL OR NOT (sampling.top_p > 0 AND sampling.top_p <= 1)
   OR sampling.max_new_tokens IS NULL OR sampling.max_new_tokens < 1
   OR finish_reason NOT IN ('stop', 'length', 'error', 'refused')
