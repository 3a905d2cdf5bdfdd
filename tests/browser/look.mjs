// What a person sees in a browser: clicks through the pages of MLflow, TensorBoard, the documentation or `make look`,
// takes pictures, and prints as JSON what stood there and what went wrong. tests/test_browser.py and tests/test_docs.py judge it.
//
//     CHROMIUM=/usr/bin/chromium node look.mjs mlflow http://127.0.0.1:5000 20261121-175117.111680-ca8387 picture.png
import { chromium } from "playwright-core";

const [program, address, run, picture] = process.argv.slice(2);
const CURVES = ["train/accuracy", "train/loss", "val/accuracy", "val/loss"];
const CPU = "system/cpu_utilization_percentage";
const ONLY_LOOPBACK = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1";
const QUIET = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"];
const USER = "/mlflow/users/current"; // MLflow's page asks who is there; a server without users answers 404

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", ONLY_LOOPBACK, ...QUIET],
});
const page = await browser.newPage({ viewport: { width: 1400, height: 1110 } });
page.setDefaultTimeout(60_000);

const troubles = [];
const isOutside = (url) => /^(http|ws)s?:/.test(url) && new URL(url).hostname !== "127.0.0.1";
page.on("pageerror", (error) => troubles.push(`error in the page: ${error.message}`));
page.on("request", (request) => isOutside(request.url()) && troubles.push(`asks outside: ${request.url()}`));
page.on("websocket", (socket) => isOutside(socket.url()) && troubles.push(`asks outside: ${socket.url()}`));
page.on("requestfailed", (request) => {
  const why = request.failure().errorText;
  const isLeft = why === "net::ERR_ABORTED"; // the next page came before the answer
  if (!isLeft) troubles.push(`${why}: ${request.url()}`);
});
page.on("response", (answer) => {
  const isExpected = answer.status() === 404 && answer.url().endsWith(USER);
  if (answer.status() >= 400 && !isExpected) troubles.push(`${answer.status()}: ${answer.url()}`);
});

const text = () => page.innerText("body");
const click = (words) => page.getByText(words, { exact: true }).click();

async function mlflow(seen) {
  await page.goto(address);
  await click("Model training"); // it opens with what it has for chats
  await page.getByRole("button", { name: "Close", exact: true }).first().click(); // its assistant
  await page.getByRole("link", { name: "digits", exact: true }).click();
  await page.getByText(/^\d+ matching runs?$/).waitFor(); // the list of all runs would come late, and over the one searched for
  const search = page.getByPlaceholder("metrics.rmse");
  await search.fill(`attributes.run_name = "${run}"`);
  await search.press("Enter");
  await page.getByText("1 matching run").waitFor();
  await page.getByRole("link", { name: run }).click();

  await click("Overview");
  await page.getByText("optimizer.lr", { exact: true }).waitFor();
  seen.overview = await text();

  await click("Model metrics");
  const size = page.viewportSize();
  await page.setViewportSize({ ...size, height: 5000 }); // a chart is drawn when it comes into view
  for (const metric of CURVES) seen.curves[metric] = await curve(metric);
  await page.setViewportSize(size);
  await page.mouse.move(700, 700);
  await page.mouse.wheel(0, 5000); // the last charts are those of train and val
  await page.waitForTimeout(2000);
  await takePicture();

  if (seen.overview.includes(CPU)) {
    await click("System metrics");
    await page.locator(".js-plotly-plot").first().waitFor();
    seen.system = await text();
  }

  await click("Artifacts");
  await click("config.yaml");
  await page.getByText("batch_size").first().waitFor();
  seen.config = await text();
  await click("confusion_matrix.png");
  seen.imageWidth = await value(() => [...document.images].find((image) => image.naturalWidth > 300)?.naturalWidth);
  await click("model");
  await page.getByText("MLmodel").or(page.getByText("Model schema")).first().waitFor();
  seen.model = await text();
}

async function tensorboard(seen) {
  const view = new URLSearchParams({ runFilter: run, tagFilter: "^(train|val)/", smoothing: 0 });
  await page.goto(`${address}/?${view}#timeseries`);
  await click("Ignore outliers in chart scaling"); // the first epochs are some
  await page.locator("scalar-card canvas").nth(CURVES.length - 1).waitFor();
  await page.waitForTimeout(3000); // the axes glide to their places
  seen.cards = await text();
  await takePicture();

  await page.goto("about:blank"); // another # alone would be the same page
  await page.goto(`${address}/#scalars&regexInput=${run}&tagFilter=loss`);
  for (const metric of ["train/loss", "val/loss"]) {
    const card = page.locator("tf-scalar-card", { hasText: `tag: ${metric}` }).first();
    const lines = card.locator("path.line[d*=L]");
    await lines.first().waitFor();
    const paths = await lines.evaluateAll((found) => found.map((line) => line.getAttribute("d")));
    seen.points[metric] = paths.map((path) => path.split("L").length);
  }
}

async function docs(seen) {
  page.on("console", (line) => {
    const isIcon = line.location().url.endsWith("/favicon.ico"); // every browser asks for one
    if (line.type() === "error" && !isIcon) troubles.push(`console: ${line.text()} ${line.location().url}`);
  });
  await page.setViewportSize({ width: 1400, height: 900 });
  const views = { start: "index", configuration: "configuration", tutorial: "model" };
  for (const [name, view] of Object.entries(views)) {
    await page.goto(`${address}/${view}.html`);
    if (name === "configuration") await page.locator("#train-data").evaluate((section) => section.scrollIntoView());
    seen[name] = await page.innerText("article");
    await takePicture(picture.replace("start", name));
  }
  seen.title = await page.innerText(".sidebar-brand-text");
  await page.locator(".sidebar-search").fill(run);
  await page.locator(".sidebar-search").press("Enter");
  await page.locator("#search-results li a").first().waitFor();
  await page.locator("#search-results li .context").first().waitFor(); // the lines around what was found
  seen.found = await page.locator("#search-results li > a").allInnerTexts();
}

async function predictions(seen) {
  await page.setViewportSize({ width: 1200, height: 800 });
  await page.goto(address);
  const column = async (at) => (await page.locator(`tbody td:nth-child(${at})`).allInnerTexts());
  const shown = () => page.innerText("#shown");
  const headings = (await page.locator("thead tr").first().locator("th").allInnerTexts()).map((each) => each.trim());
  const at = (name) => headings.findIndex((each) => each.replace(/ .$/, "") === name) + 1;
  seen.headings = headings;
  seen.first = { shown: await shown(), loss: await column(at("loss")) };
  await takePicture();
  await page.getByRole("button", { name: "Show more" }).click();
  seen.more = await shown();
  await page.getByRole("button", { name: run }).click(); // falling
  await page.getByRole("button", { name: run }).click(); // rising
  seen.rising = await column(at(run));
  seen.sorted = await page.locator("th[aria-sort=ascending]").innerText();
  await page.getByLabel("filter right").selectOption("no");
  seen.wrong = { shown: await shown(), right: await column(at("right")) };
  await page.getByLabel(`filter ${run} from`).fill("0.5");
  seen.sure = { shown: await shown(), values: await column(at(run)) };
  seen.pictures = await page.locator("tbody img").evaluateAll((found) => found.map((image) => image.naturalWidth));
}

/** Without what the mouse and the focus light up. */
async function takePicture(file = picture) {
  await page.mouse.move(0, 0);
  await page.evaluate(() => document.activeElement.blur());
  await page.waitForTimeout(500);
  await page.screenshot({ path: file });
}

/** What the function says in the page, as soon as it says something. */
async function value(question, argument) {
  return (await page.waitForFunction(question, argument)).jsonValue();
}

/** The values of this metric's curve in MLflow, once it is drawn. */
function curve(metric) {
  return value((metric) => {
    for (const plot of document.querySelectorAll(".js-plotly-plot")) {
      const trace = plot.data?.find((trace) => trace.metricKey === metric);
      if (trace && plot.querySelector(".scatterlayer path.js-line")) return trace.y;
    }
  }, metric);
}

const seen = { curves: {}, points: {}, troubles };
try {
  await { docs, mlflow, predictions, tensorboard }[program](seen);
} catch (error) {
  troubles.push(`${error.stack}\nThe page was ${page.url()}:\n${await text()}`);
}
await browser.close();
console.log(JSON.stringify(seen));
