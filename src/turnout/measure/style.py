"""The style sheet of the report: calm, readable on a phone, light and dark, no outside fonts."""

from __future__ import annotations

CSS = """
:root {
  color-scheme: light dark;
  --sans: ui-sans-serif, system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  --serif: ui-serif, "Iowan Old Style", Palatino, Georgia, serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, monospace;
  --paper: #f8f7f3; --card: #ffffff; --ink: #23272b; --faint: #646b70; --grid: #e8e6df;
  --dense: #23272b; --routed: #0b7a6b; --random: #767c88; --static: #ad6210;
  --noise: #7d4f9e;
  --tint: #e5f1ee; --empty: #eceae3;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171a; --card: #1c2023; --ink: #e4e6e4; --faint: #9ba3a7; --grid: #2d3337;
    --dense: #e4e6e4; --routed: #4fc3b0; --random: #99a1ae; --static: #e0a458;
    --noise: #c39be0;
    --tint: #1d302d; --empty: #2a2f33;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 1rem/1.6 var(--sans); -webkit-text-size-adjust: 100%;
}
main { max-width: 68rem; margin: 0 auto; padding: clamp(1.5rem, 5vw, 4rem) clamp(1rem, 4vw, 2rem); }
.eyebrow { color: var(--faint); font-size: .875rem; margin: 0 0 .75rem; overflow-wrap: anywhere; }
h1 {
  font: 500 clamp(1.7rem, 5vw, 2.75rem)/1.18 var(--serif);
  letter-spacing: -.012em; margin: 0 0 1.25rem; max-width: 32ch; text-wrap: balance;
}
h2 { font: 500 1.375rem/1.3 var(--serif); margin: 0 0 .25rem; }
p { margin: 0 0 .75rem; max-width: 68ch; }
section { margin-top: 3rem; }
.why { color: var(--faint); font-size: .9375rem; }
.card {
  background: var(--card); border: 1px solid var(--grid); border-radius: 12px;
  padding: clamp(.75rem, 3vw, 1.5rem); margin-top: 1rem;
}
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: 1px;
  padding: 0; overflow: hidden; background: var(--grid); }
.figures div { background: var(--card); padding: 1rem 1.25rem; }
.figures b { display: block; 
  font: 500 clamp(1.35rem, 4vw, 1.75rem)/1.25 var(--serif); }
.figures span { font-size: .8125rem; color: var(--faint); display: block; line-height: 1.4; }
svg { display: block; width: 100%; height: auto; }
.narrow { display: none; }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; font-size: .875rem;
  margin: 0 0 .75rem; padding: 0; list-style: none; max-width: none; color: var(--faint); }
.legend i { display: inline-block; width: .7em; height: .7em; margin-right: .45em;
  background: var(--c); }
.legend .random { clip-path: polygon(50% 0, 100% 100%, 0 100%); }
.legend .routed { border-radius: 50%; } .legend .dense { transform: rotate(45deg) scale(.85); }
.scroll { overflow-x: auto; padding: 0; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; line-height: 1.35;
  font-variant-numeric: tabular-nums; }
th, td { padding: .6rem; text-align: right; white-space: nowrap; vertical-align: top; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
  background: var(--card); }
thead th { font-weight: 500; color: var(--faint); border-bottom: 1px solid var(--grid); }
tbody th { font-weight: 600; }
tbody tr + tr > * { border-top: 1px solid var(--grid); }
tr.chosen > *, tr.chosen > th:first-child { background: var(--tint); }
small { display: block; font-size: .75rem; font-weight: 400; color: var(--faint); }
.plain, .above { color: var(--routed); } .below { color: var(--static); }
.dot { display: inline-block; width: .6em; height: .6em; border-radius: 50%; margin-right: .5em;
  background: var(--c); }
.use td { min-width: 6rem; vertical-align: middle; }
.bar { display: block; height: .5rem; border-radius: 99px; background: var(--empty);
  overflow: hidden; margin-bottom: .2rem; }
.bar b { display: block; height: 100%; background: var(--routed); border-radius: 99px; }
.units { display: flex; align-items: flex-end; gap: 2px; height: 2.25rem; margin-bottom: .2rem; }
.units b { flex: 1; min-width: 3px; height: 100%; border-radius: 2px;
  background: linear-gradient(to top, var(--routed) var(--h), var(--empty) var(--h)); }
.sentence { display: flex; flex-wrap: wrap; gap: 1.1rem .4rem; align-items: flex-end; }
.token { display: flex; flex-direction: column; min-width: 1.5rem; }
.token i { height: .7rem; margin-top: 2px; border-radius: 2px; background: var(--empty);
  overflow: hidden; }
.token i::before { content: ""; display: block; height: 100%; background: var(--routed);
  opacity: var(--r); }
.token span { font: .8125rem/1.7 var(--mono); text-align: center; white-space: pre;
  padding: 0 .1rem; }
.key { font-size: .75rem; line-height: .7rem; color: var(--faint); }
.key i { background: none; font-style: normal; text-align: right; overflow: visible;
  height: .7rem; }
.key i::before { display: none; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.5rem; margin: 0;
  font-size: .9375rem; }
dt { color: var(--faint); } dd { margin: 0; overflow-wrap: anywhere; }
code { font: .875em/1.5 var(--mono); overflow-wrap: anywhere; }
ul { padding-left: 1.1rem; max-width: 68ch; margin: .5rem 0 0; } li { margin-bottom: .4rem; }
footer { margin-top: 3rem; padding-top: 1rem; border-top: 1px solid var(--grid);
  color: var(--faint); font-size: .8125rem; }
@media (max-width: 40rem) {
  .wide { display: none; } .narrow { display: block; }
  .figures { grid-template-columns: 1fr 1fr; } .figures div { padding: .8rem 1rem; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .5rem; }
  th, td { padding: .5rem .6rem; }
  .use td { min-width: 4.4rem; } .use td, .use th { padding: .5rem .4rem; }
}
@media print { body { background: none; } section { break-inside: avoid; } }
""".strip()
