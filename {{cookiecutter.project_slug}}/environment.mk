$(error this is no project yet: the hooks of the template did not run. Generate it again, with --accept-hooks yes)
