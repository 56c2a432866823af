-- How long are the traces (quantiles of characters, words, steps and items in the prompt)?
SELECT what, min(size) AS min, quantile_disc(size, 0.05) AS q05, quantile_disc(size, 0.25) AS q25,
       quantile_disc(size, 0.5) AS median, quantile_disc(size, 0.75) AS q75, quantile_disc(size, 0.95) AS q95,
       max(size) AS max, sum(size)::BIGINT AS total
FROM (UNPIVOT (SELECT len(text)::BIGINT AS characters, len(regexp_extract_all(text, '\S+'))::BIGINT AS words,
                      len(steps)::BIGINT AS steps, len(item_ids)::BIGINT AS items FROM traces)
      ON characters, words, steps, items INTO NAME what VALUE size)
GROUP BY what
ORDER BY what
