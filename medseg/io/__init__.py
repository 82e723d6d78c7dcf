"""The only doors to files, one for each family. LPS/RAS and (k, j, i) are known here and nowhere else."""
