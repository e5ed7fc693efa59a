// Opens the dashboard in a headless Chromium and writes what it finds as JSON. Called by test_page.py:
//   node browser.cjs ADDRESS FOLDER KEY
// It asks for the server to be stopped and started again by a line on standard output, and waits for an answer.
"use strict";

const readline = require("node:readline");
const { chromium } = require("playwright-core");

const [address, folder, key] = process.argv.slice(2);
const answers = readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]();

async function ask(what) {
  console.log(what);
  await answers.next();
}

async function open(browser, scheme, width, found) {
  const context = await browser.newContext({ colorScheme: scheme, viewport: { width, height: 900 }, bypassCSP: false });
  const page = await context.newPage();
  page.on("console", (message) => { if (message.type() === "error") found.console.push(message.text()); });
  page.on("pageerror", (error) => found.console.push(String(error)));
  page.on("request", (request) => { if (!request.url().startsWith(address)) found.elsewhere.push(request.url()); });
  await page.goto(`${address}/dashboard`);
  return page;
}

const live = (page) => page.locator("#connection", { hasText: "Live" }).waitFor({ timeout: 20000 });

async function look(page, name, found) {
  await live(page);
  await page.waitForTimeout(1200); // another second arrives
  const overflow = await page.evaluate(() => ({
    page: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    cut: [...document.querySelectorAll(".tile *, .chart-head *, header *, .facts *, td")]
      .filter((node) => node.scrollWidth > node.clientWidth + 1 && node.clientWidth > 0).map((node) => node.outerHTML),
  }));
  // The policy keeps scripts out of the page, so axe is run by the debugger's protocol instead.
  await page.evaluate(require("node:fs").readFileSync(require.resolve("axe-core/axe.min.js"), "utf8"));
  const { violations } = await page.evaluate(() => window.axe.run());
  found.views[name] = {
    overflow, violations: violations.map(({ id, impact, nodes }) => ({ id, impact, where: nodes.map((node) => node.html) })),
    canvases: await page.locator("canvas").count(), colour: await page.evaluate(() => getComputedStyle(document.body).backgroundColor),
  };
  await page.screenshot({ path: `${folder}/${name}.png`, fullPage: true });
}

async function useKeyboard(page) {
  const stops = [];
  for (let press = 0; press < 8; press++) {
    await page.keyboard.press("Tab");
    stops.push(await page.evaluate(() => document.activeElement.id || document.activeElement.getAttribute("aria-label") || document.activeElement.getAttribute("role")));
  }
  const plot = page.locator(".plot").first();
  await plot.focus();
  const texts = [];
  for (const pressed of ["Home", "ArrowRight", "PageUp", "End"]) {
    await page.keyboard.press(pressed);
    texts.push([await plot.getAttribute("aria-valuenow"), await plot.getAttribute("aria-valuetext")]);
  }
  await page.locator("#theme").focus();
  const theme = () => page.evaluate(() => [getComputedStyle(document.body).backgroundColor, document.getElementById("theme").getAttribute("aria-pressed")]);
  const before = await theme();
  await page.keyboard.press("Enter");
  const after = await theme();
  await page.reload();
  await live(page);
  return { stops, texts, before, after, reloaded: await theme() };
}

async function reconnect(page) {
  const seen = [];
  await ask("stop");
  await page.locator("#connection", { hasText: "Reconnecting" }).waitFor({ timeout: 20000 });
  seen.push("Reconnecting");
  await page.screenshot({ path: `${folder}/reconnecting.png` });
  await ask("start");
  await live(page);
  seen.push("Live");
  return seen;
}

async function giveKey(page) {
  await ask("guard");
  await page.goto(`${address}/dashboard`);
  await page.locator("#key-form").waitFor({ timeout: 20000 });
  const focused = await page.evaluate(() => document.activeElement.id);
  await page.screenshot({ path: `${folder}/key.png` });
  await page.keyboard.type("wrong");
  await page.keyboard.press("Enter");
  await page.locator("#key-refused", { hasText: "refused" }).waitFor({ timeout: 20000 });
  await page.keyboard.type(key);
  await page.keyboard.press("Enter");
  await live(page);
  const stored = await page.evaluate(() => JSON.stringify({ ...localStorage, ...sessionStorage }));
  return { focused, stored };
}

(async () => {
  const found = { console: [], elsewhere: [], views: {} };
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM || "/usr/bin/chromium", args: ["--no-sandbox"] });
  try {
    for (const scheme of ["light", "dark"]) {
      for (const width of [400, 1400]) {
        const page = await open(browser, scheme, width, found);
        await look(page, `${scheme}-${width}`, found);
        if (scheme === "light" && width === 1400) found.keyboard = await useKeyboard(page);
        await page.context().close();
      }
    }
    // A server that is away or refuses leaves lines on the console by itself.
    const page = await open(browser, "dark", 900, { console: [], elsewhere: [] });
    await live(page);
    found.connection = await reconnect(page);
    found.key = await giveKey(page);
  } finally {
    await browser.close();
  }
  console.log(`found ${JSON.stringify(found)}`);
  process.exit(0);
})().catch((error) => {
  console.error(error);
  process.exit(1);
});
