"""What pictures are judged by: feature networks, made from weight files that lie here."""
