"""The pictures that a cell is judged by: drawn, and compared with its reference's. Imported by workers only."""
