# {{ validate(cookiecutter) }}
