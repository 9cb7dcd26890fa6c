"""Files: whole or not there, never over anybody else's, and who is at work in a folder."""
