// Opens the live page in a headless Chromium and writes what it finds as JSON. Called by test_live_page.py:
//   node browser.cjs ADDRESS FILE FOLDER
// It asks for the server to be stopped, started, or given another snapshot by a line on standard output, and waits for
// an answer.
"use strict";

const { readFileSync } = require("node:fs");
const readline = require("node:readline");
const { chromium } = require("playwright-core");

const [address, file, folder] = process.argv.slice(2);
const answers = readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]();

async function ask(what) {
  console.log(what);
  await answers.next();
}

async function open(browser, where, scheme, width, found) {
  const context = await browser.newContext({ colorScheme: scheme, viewport: { width, height: 900 } });
  const page = await context.newPage();
  page.on("console", (message) => { if (message.type() === "error") found.console.push(message.text()); });
  page.on("pageerror", (error) => found.console.push(String(error)));
  page.on("request", (request) => { if (!request.url().startsWith(address) && !request.url().startsWith("data:")) found.elsewhere.push(request.url()); });
  await page.goto(where);
  await page.waitForFunction(() => window.domainclip.snapshot !== null);
  await page.waitForTimeout(400);
  return page;
}

const live = (page) => page.locator("#connection", { hasText: "Live" }).waitFor({ timeout: 20000 });

async function look(page, name) {
  // Images load when one comes near them.
  for (const image of await page.locator("#classes img").all()) await image.scrollIntoViewIfNeeded();
  await page.evaluate(() => Promise.all([...document.images].map((image) => image.decode())));
  await page.evaluate(() => scrollTo(0, 0));
  // The policy keeps scripts out of the page, so axe is run by the debugger's protocol instead.
  await page.evaluate(readFileSync(require.resolve("axe-core/axe.min.js"), "utf8"));
  const { violations } = await page.evaluate(() => window.axe.run());
  await page.screenshot({ path: `${folder}/${name}.png`, fullPage: true });
  return {
    violations: violations.map(({ id, impact, nodes }) => ({ id, impact, where: nodes.map((node) => node.html) })),
    ...await page.evaluate(() => ({
      overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
      cut: [...document.querySelectorAll("header *, .run *, .chart-head *, #milestones *")]
        .filter((node) => node.scrollWidth > node.clientWidth + 1 && node.clientWidth > 0 && getComputedStyle(node).display !== "inline").map((node) => node.outerHTML),
      panels: [...document.querySelectorAll(".chart")].filter((box) => box.offsetParent !== null).map((box) => box.id),
      empty: [...document.querySelectorAll(".chart")].filter((box) => box.offsetParent !== null && !box.querySelector("canvas")).map((box) => box.id),
      images: [...document.images].map((image) => image.naturalWidth),
      colour: getComputedStyle(document.body).backgroundColor,
      text: document.querySelector("main").innerText,
      snapshot: window.domainclip.snapshot,
    })),
  };
}

async function useKeyboard(page) {
  const said = async (node, keys) => {
    await node.focus();
    const texts = [];
    for (const key of keys) {
      await page.keyboard.press(key);
      texts.push(await node.getAttribute("aria-valuetext"));
    }
    return texts;
  };
  const chart = await said(page.locator("#chart-loss .plot"), ["Home", "ArrowRight", "End"]);
  const slider = await said(page.locator("#validation-0"), ["ArrowLeft", "Home", "End"]);
  await page.locator("#chart-loss summary").focus();
  await page.keyboard.press("Enter");
  await page.locator("#chart-loss table").waitFor();
  const table = await page.evaluate(() => [...document.querySelectorAll("#chart-loss tr")].map((row) => [...row.cells].map((cell) => cell.textContent)));
  await page.locator("#theme").focus();
  await page.keyboard.press("Enter");
  return { chart, slider, table, themed: await page.evaluate(() => getComputedStyle(document.body).backgroundColor) };
}

async function loseConnection(page) {
  await ask("stop");
  await page.locator("#lost").waitFor({ timeout: 20000 });
  const lost = await page.locator("#lost").textContent();
  await page.screenshot({ path: `${folder}/lost.png` });
  await ask("finish");
  await live(page);
  await page.locator(".state", { hasText: "finished" }).waitFor({ timeout: 20000 });
  return { lost, after: await page.locator("#lost").isVisible(), state: await page.locator(".run").innerText() };
}

(async () => {
  const found = { console: [], elsewhere: [], ofFile: [], views: {} };
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM || "/usr/bin/chromium", args: ["--no-sandbox"] });
  try {
    for (const scheme of ["light", "dark"]) {
      for (const width of [400, 1400]) {
        const page = await open(browser, address, scheme, width, found);
        await live(page);
        found.views[`${scheme}-${width}`] = await look(page, `${scheme}-${width}`);
        if (scheme === "light" && width === 1400) {
          found.keyboard = await useKeyboard(page);
          found.average = await page.evaluate(() => window.domainclip.movingAverage({ steps: [1, 2, 4, 9], values: [3, 1, null, 2] }, 5));
        }
        await page.context().close();
      }
    }
    const saved = await open(browser, `file://${file}`, "light", 1400, { console: found.console, elsewhere: found.ofFile });
    found.views.file = await look(saved, "file");
    found.saved = await saved.locator("#connection").textContent();
    await ask("several");
    const several = await open(browser, address, "light", 1400, found);
    await live(several);
    found.views.several = await look(several, "several");
    found.dashes = await several.evaluate(() => [...document.querySelectorAll(".run-head .swatch path")].map((path) => path.getAttribute("stroke-dasharray")));
    found.difference = await several.locator("#difference").innerText();
    await ask("one");
    // A server that is away leaves lines on the console by itself.
    const page = await open(browser, address, "dark", 900, { console: [], elsewhere: [] });
    await live(page);
    found.connection = await loseConnection(page);
  } finally {
    await browser.close();
  }
  // More than a pipe holds at once.
  process.stdout.write(`found ${JSON.stringify(found)}\n`, () => process.exit(0));
})().catch((error) => {
  console.error(error);
  process.exit(1);
});
