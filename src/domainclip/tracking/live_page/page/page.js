"use strict";

/* Where the snapshots come from: a stream of events, or the file itself that holds page, scripts and one snapshot. */
(function (page) {
  const { byId, setText, moment, clock } = page;

  function show(snapshot) {
    page.snapshot = snapshot;
    page.showRuns(snapshot);
    page.showCharts(snapshot);
  }

  /* ---- theme ---- */

  const systemDark = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  const isDark = () => root.dataset.theme ? root.dataset.theme === "dark" : systemDark.matches;

  function showTheme() {
    byId("theme").setAttribute("aria-pressed", String(isDark()));
    page.redrawCharts();
    page.redrawHistograms();
  }

  /* Where a browser keeps nothing, the choice lasts as long as the page. */
  function stored(action) {
    try { return action(localStorage); } catch { return null; }
  }

  const before = stored((storage) => storage.getItem("domainclip-theme"));
  if (before === "light" || before === "dark") root.dataset.theme = before;
  byId("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    stored((storage) => storage.setItem("domainclip-theme", root.dataset.theme));
    showTheme();
  });
  systemDark.addEventListener("change", showTheme);
  showTheme();

  /* ---- connection ---- */

  const AGAIN = 2000;

  function showConnection(text, level) {
    setText(byId("connection"), text);
    byId("connection").dataset.level = level;
  }

  function lose() {
    showConnection("Reconnecting", "warn");
    const since = page.snapshot ? ` The page shows how it stood at ${clock(page.snapshot.made_at)}.` : "";
    setText(byId("lost"), `The connection to domainclip is lost.${since} It connects again by itself; if it does not, start domainclip watch again.`);
    byId("lost").hidden = false;
  }

  /* A page that nobody sees waits with its drawing until it is looked at. */
  let waiting = null;
  function take(text) {
    if (document.hidden && page.snapshot) {
      waiting = text;
      return;
    }
    waiting = null;
    show(JSON.parse(text));
  }
  document.addEventListener("visibilitychange", () => { if (!document.hidden && waiting !== null) take(waiting); });

  function listen() {
    const events = new EventSource("events");
    events.addEventListener("snapshot", (event) => {
      byId("lost").hidden = true;
      showConnection("Live", "good");
      take(event.data);
    });
    events.addEventListener("error", () => {
      lose();
      // A browser tries again by itself where the connection breaks, and gives up where an answer is wrong.
      if (events.readyState === EventSource.CLOSED) setTimeout(listen, AGAIN);
    });
  }

  const embedded = byId("snapshot");
  page.isFile = embedded !== null;
  if (page.isFile) {
    const snapshot = JSON.parse(embedded.textContent);
    showConnection(`Saved ${moment(snapshot.made_at)}`, "unknown");
    show(snapshot);
  } else listen();
})(window.domainclip);
