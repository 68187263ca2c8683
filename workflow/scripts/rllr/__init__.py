"""What the stage programs share. Importable because `workflow/scripts` is each program's own folder."""
