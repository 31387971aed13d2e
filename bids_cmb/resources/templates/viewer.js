// Where a page has a view: the scan in three planes, beneath the card of the lesion that it shows.
// The viewer and the scan are loaded when they are first asked for.
let loaded = null, current = null;
const WINDOW = 255; // of the greys; the brightest tissue of the brain has the last one
const OUTLINED = 0.8; // opacity of the outlines
// Yellow around lesions (1), pink around candidates (2), by value from 0.5 to 2; nothing elsewhere.
const RINGS = {R: [255, 255, 255, 255, 255], G: [190, 230, 230, 130, 130], B: [120, 0, 0, 220, 220], A: [0, 255, 255, 255, 255], I: [0, 64, 128, 192, 255]};
const LOWEST_STAGE_PX = 380; // that is worth showing beside its card
const script = source => new Promise((done, failed) => {
  const tag = document.createElement("script");
  tag.src = source;
  tag.addEventListener("load", done);
  tag.addEventListener("error", () => failed(new Error(`${source} is not there`)));
  document.head.append(tag);
});

function open(scan) {
  if (!scan.view) return Promise.resolve(null);
  if (!current || current.scan !== scan) {
    shut();
    current = {scan, box: find(".viewer", homeOf(scan)), at: [0, 0, 0], lesion: null, lined: true};
    current.ready = fill(current).catch(error => {
      say(`The view cannot be shown: ${error.message || error}.`);
      shut();
      loaded = null;
      return null;
    });
  }
  current.box.hidden = false;
  return current.ready;
}

function shut() {
  if (!current) return;
  current.box.hidden = true;
  current.sized?.disconnect();
  current.viewer?.gl?.getExtension("WEBGL_lose_context")?.loseContext();
  current = null;
}

// Hides the viewer; the reader is back on the card.
function close() {
  const {box, scan, lesion} = current;
  box.hidden = true;
  (lesion ? rowOf(scan, lesion) : find(".open", homeOf(scan))).focus();
}

async function fill(view) {
  loaded ||= script(about.viewer);
  await loaded;
  await script(view.scan.view);
  const {scan, lesions, slices} = window.bids_cmb_view;
  window.bids_cmb_view = undefined;
  view.slices = slices;
  const canvas = document.createElement("canvas"), stage = find(".stage", view.box);
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-label", "The scan in three planes, moved through by keys");
  stage.replaceChildren(canvas);
  const viewer = view.viewer = new niivue.Niivue({
    show3Dcrosshair: false, backColor: [0, 0, 0, 1], isRadiologicalConvention: true, crosshairWidth: 0.4, crosshairWidthUnit: "mm", crosshairGap: 12,
    crosshairColor: [0.34, 0.71, 0.91, 0.9], isResizeCanvas: true, dragAndDropEnabled: false, loadingText: "",
    showAllOrientationMarkers: true, fontColor: [1, 1, 1, 1], logLevel: "silent",
  });
  viewer.onLocationChange = () => {
    view.at = Array.from(viewer.frac2mm(viewer.scene.crosshairPos, 0, true).slice(0, 3));
    describeView();
  };
  viewer.onIntensityChange = describeView;
  for (const kind of ["keydown", "keyup"])
    canvas.addEventListener(kind, event => {
      if (event.key === "Tab" || event.ctrlKey || event.metaKey || event.altKey) return;
      event.stopImmediatePropagation(); // NiiVue has keys of its own
      if (kind === "keydown" && press(view, event.key)) event.preventDefault();
    }, {capture: true});
  await viewer.attachToCanvas(canvas);
  viewer.setSliceType(viewer.sliceTypeMultiplanar);
  viewer.addVolume(await niivue.NVImage.loadFromBase64({base64: scan, name: "scan.nii.gz", colormap: "gray", cal_min: 0, cal_max: WINDOW}));
  viewer.addColormap("rings", RINGS);
  viewer.addVolume(await niivue.NVImage.loadFromBase64({base64: lesions, name: "lesions.nii.gz", colormap: "rings", cal_min: 0.5, cal_max: 2, opacity: OUTLINED}));
  view.sized = new ResizeObserver(() => arrange(view, stage));
  view.sized.observe(stage);
  arrange(view, stage);
  return view;
}

// One large axial view and two small ones: beside it, or below where the page is narrow.
function arrange(view, stage) {
  const {sliceTypeAxial: axial, sliceTypeCoronal: coronal, sliceTypeSagittal: sagittal} = view.viewer;
  const places = stage.clientWidth > 1.1 * stage.clientHeight
    ? [[axial, [0, 0, 0.68, 1]], [coronal, [0.68, 0, 0.32, 0.5]], [sagittal, [0.68, 0.5, 0.32, 0.5]]]
    : [[axial, [0, 0, 1, 0.7]], [coronal, [0, 0.7, 0.5, 0.3]], [sagittal, [0.5, 0.7, 0.5, 0.3]]];
  view.viewer.setCustomLayout(places.map(([sliceType, position]) => ({sliceType, position})));
}

// What a key does in the viewer. Returns whether it is one.
function press(view, key) {
  const move = {
    ArrowLeft: [1, 0, 0], ArrowRight: [-1, 0, 0], // the participant's right is on the left
    ArrowUp: [0, 1, 0], ArrowDown: [0, -1, 0], PageUp: [0, 0, 1], PageDown: [0, 0, -1],
  }[key];
  const factor = {"+": 0.85, "=": 0.85, "-": 1 / 0.85, 0: 0}[key];
  if (move) view.viewer.moveCrosshairInVox(...move);
  else if (factor !== undefined) changeWindow(view, factor);
  else if (key === "m") miss(view.scan, view.at);
  else if (key === "o") outline(view);
  else if (key === "Escape") close();
  else return view.lesion ? pressOnLesion(view.scan, view.lesion, key) : false;
  return true;
}

// Makes the scan brighter by a factor below 1 and darker by one above; 0 makes it as it was.
function changeWindow(view, factor) {
  const [grey] = view.viewer.volumes;
  grey.cal_min = factor ? grey.cal_min : 0;
  grey.cal_max = factor ? Math.max(grey.cal_min + 5, grey.cal_max * factor) : WINDOW;
  view.viewer.updateGLVolume();
  describeView();
}

function outline(view) {
  view.lined = !view.lined;
  view.viewer.setOpacity(1, view.lined ? OUTLINED : 0);
}

// The line above the view: lesion, slice, window and verdict.
function describeView() {
  if (!current?.viewer?.volumes.length) return;
  const {scan, lesion, at, box, slices, viewer} = current, [grey] = viewer.volumes;
  const number = slices.step.reduce((sum, step, axis) => sum + step * at[axis], slices.first);
  const [low, high] = [grey.cal_min, grey.cal_max].map(value => Math.round(100 * value / WINDOW));
  const parts = [`slice ${Math.round(number)} of ${slices.count}`, `window ${low} to ${high} %`];
  let what = "No lesion";
  if (lesion) {
    const verdict = review.lesions[keyOf(scan, lesion)]?.verdict, away = Math.hypot(...at.map((x, i) => x - lesion.at[i]));
    what = `${rowOf(scan, lesion).getAttribute("aria-label")} (${scan.lesions.indexOf(lesion) + 1} of ${scan.lesions.length})`;
    if (away >= 2) parts.unshift(`${away.toFixed(0)} mm from it`);
    parts.push(`verdict: ${verdict || "none"}`);
    for (const button of all("[data-verdict]", box)) button.setAttribute("aria-pressed", button.dataset.verdict === verdict);
  }
  find(".what", box).textContent = what;
  find(".state", box).textContent = parts.join(" · ");
  find(".place", box).textContent = at.map(x => x.toFixed(1)).join(", ") + " mm";
}

// Shows a lesion in the scan beneath its card, or another place; where the viewer was open, the
// page stands still.
async function visit(scan, lesion, at = lesion?.at) {
  const box = find(".viewer", homeOf(scan)), host = lesion ? unfold(rowOf(scan, lesion)) : box.parentElement;
  const before = box.hidden ? null : box.getBoundingClientRect().top;
  if (box.parentElement !== host) host.append(box);
  box.hidden = false;
  fit(lesion ? host : box, box);
  const view = await go(scan, at, lesion);
  if (!view) return;
  find("canvas", box).focus({preventScroll: true});
  if (before === null) bring(lesion ? host : box, box);
  else scrollBy(0, box.getBoundingClientRect().top - before);
}

// Makes the view as high as leaves room for its card, or most of the window where there is none.
function fit(row, box) {
  const stage = find(".stage", box), rest = row.offsetHeight - stage.offsetHeight;
  const room = innerHeight - find(".bar").offsetHeight - 16 - rest;
  stage.style.height = `${Math.round(room >= LOWEST_STAGE_PX ? room : 0.62 * innerHeight)}px`;
}

// Scrolls so that card and viewer can be seen together, or the viewer alone where they do not fit.
function bring(row, box) {
  const bar = find(".bar").offsetHeight + 8;
  const fits = box.getBoundingClientRect().bottom - row.getBoundingClientRect().top <= innerHeight - bar;
  scrollBy(0, (fits ? row : box).getBoundingClientRect().top - bar);
}

async function go(scan, at, lesion) {
  const view = await open(scan);
  if (!view || view !== current) return null;
  view.lesion = lesion;
  if (at) view.viewer.scene.crosshairPos = view.viewer.mm2frac(at, 0, true);
  view.viewer.drawScene();
  view.viewer.createOnLocationChange();
  return view;
}

function addTools(scan, home) {
  const box = find(".viewer", home), onClick = (query, act) => {
    for (const button of all(query, box)) button.addEventListener("click", () => act(button));
  };
  find(".open", home).addEventListener("click", () => visit(scan, scan.lesions[0]));
  onClick(".here", () => miss(scan, current.at));
  onClick(".lines", () => outline(current));
  onClick(".close", close);
  onClick("[data-key]", button => press(current, button.dataset.key));
  onClick("[data-verdict]", ({dataset: {verdict}}) => current.lesion && judge(scan, current.lesion, {verdict}));
}
