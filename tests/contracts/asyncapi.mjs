// Reads docs/asyncapi.yaml, and what it refers to, with AsyncAPI's own parser. Prints what is wrong, or what is there.
import { Parser, fromFile } from '@asyncapi/parser';

const { document, diagnostics } = await fromFile(new Parser(), process.argv[2]).parse();
for (const { code, path, message } of diagnostics) console.log(`${path.join('.')}: ${code}: ${message}`);
if (!document || diagnostics.length) process.exit(1);
const names = (list) => list.all().map((item) => item.id()).join(', ');
console.log(`valid: AsyncAPI ${document.version()}; channels ${names(document.channels())}`);
