"""Pictures and the HTML page of a subject."""
