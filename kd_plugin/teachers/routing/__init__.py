"""Several teachers for one multilingual student: each sentence is sent to the teacher of its language pair or tag."""
