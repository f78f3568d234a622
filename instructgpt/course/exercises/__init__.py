"""One file an exercise, its name that of the file, with one record `EXERCISE`. Whatever is added here is found."""
