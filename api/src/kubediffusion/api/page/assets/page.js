// Sends a prompt to /v1/jobs, follows the job, shows its images. Addresses are relative: it also works behind a prefix.

const ENDED = new Set(["Succeeded", "Failed", "Cancelled"]);
const POLL = 500; // milliseconds; a poll is answered from the server's memory
const LOOK = 1000; // milliseconds; a preview changes no more often
const form = document.getElementById("request");
const problem = document.getElementById("problem");
const list = document.getElementById("jobs");
const template = document.getElementById("job");

class Refused extends Error {
  constructor(status, message, retryAfter) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

async function request(path, options = {}) {
  const key = form.elements.key.value;
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  const { detail } = await response.json().catch(() => ({ detail: response.statusText }));
  const message = Array.isArray(detail) ? detail.map((p) => `${p.loc.at(-1)}: ${p.msg}`).join("; ") : detail;
  if (response.status === 401 || response.status === 403) document.getElementById("key").hidden = false;
  throw new Refused(response.status, message, Number(response.headers.get("Retry-After")));
}

const json = async (path, options) => (await request(path, options)).json();

function wanted() {
  const fields = new FormData(form);
  const body = { prompt: fields.get("prompt") };
  if (fields.get("negative_prompt")) body.negative_prompt = fields.get("negative_prompt");
  for (const name of ["num_inference_steps", "guidance_scale"]) body[name] = Number(fields.get(name));
  // A seed may exceed what a JavaScript number holds, so its digits go into the text of the request as they are.
  const seed = fields.get("seed").trim();
  const text = JSON.stringify(body);
  return seed ? `${text.slice(0, -1)},"seed":${BigInt(seed)}}` : text;
}

function state(job) {
  if (job.error) return `${job.phase}: ${job.error.message}`;
  if (job.phase === "Running" && job.progress) return `Running, step ${job.progress}`;
  if (job.phase === "Succeeded" && job.timings?.inference) return `${job.timings.inference.toFixed(1)} s`;
  if (job.phase !== "Pending") return job.phase;
  const place = job.queue_position ? `Pending, number ${job.queue_position} in the queue` : "Pending";
  return job.waiting ? `${place}: ${job.waiting.message}` : place;
}

function show(item, job) {
  item.querySelector(".prompt").textContent = job.prompt;
  item.querySelector(".state").textContent = state(job);
  item.querySelector(".cancel").hidden = ENDED.has(job.phase);
  const bar = item.querySelector("progress");
  if (!bar) return;
  const [step, total] = (job.progress ?? "").split("/").map(Number);
  if (total) Object.assign(bar, { max: total, value: step });
  if (ENDED.has(job.phase)) bar.remove();
}

async function preview(item, job) {
  const response = await request(`v1/jobs/${job.name}/preview`).catch(() => null); // there is none, or not yet
  if (!response || !item.isConnected) return;
  const place = item.querySelector(".picture");
  const picture = place.querySelector(".preview") ?? place.appendChild(new Image());
  URL.revokeObjectURL(picture.src);
  Object.assign(picture, { className: "preview", alt: "", src: URL.createObjectURL(await response.blob()) });
}

async function pictures(item, job) {
  const place = item.querySelector(".picture");
  for (const image of job.images) {
    const blob = await (await request(`v1/jobs/${job.name}/images/${image.index}`)).blob();
    const picture = new Image();
    picture.alt = job.prompt;
    picture.src = URL.createObjectURL(blob);
    await picture.decode();
    place.querySelector(".preview")?.remove();
    place.append(picture);
  }
}

async function follow(item, job) {
  item.querySelector(".cancel").onclick = () =>
    request(`v1/jobs/${job.name}/cancel`, { method: "POST" }).catch((error) => tell(error));
  show(item, job);
  let looked = 0;
  // Another key empties the list: what is no longer shown is no longer asked for.
  while (!ENDED.has(job.phase) && item.isConnected) {
    await new Promise((resolve) => setTimeout(resolve, POLL));
    try {
      job = await json(`v1/jobs/${job.name}`);
      show(item, job);
      if (["Scheduled", "Running"].includes(job.phase) && Date.now() - looked > LOOK) {
        looked = Date.now();
        await preview(item, job);
      }
    } catch (error) {
      if (error.status === 404) return item.remove(); // deleted by somebody
      if (error.status === 401 || error.status === 403) return tell(error);
      item.querySelector(".state").textContent = `${error.message} (trying again)`;
      if (error.retryAfter) await new Promise((resolve) => setTimeout(resolve, 1000 * error.retryAfter));
    }
  }
  if (item.isConnected) await pictures(item, job).catch((error) => tell(error));
}

function add(job, where) {
  const item = template.content.firstElementChild.cloneNode(true);
  list.insertAdjacentElement(where, item);
  follow(item, job);
}

const tell = (error) => (problem.textContent = error.message);

form.onsubmit = async (event) => {
  event.preventDefault();
  const button = form.querySelector("button");
  button.disabled = true;
  problem.textContent = "";
  try {
    const headers = { "Content-Type": "application/json" };
    add(await json("v1/jobs", { method: "POST", headers, body: wanted() }), "afterbegin");
  } catch (error) {
    tell(error);
  } finally {
    button.disabled = false;
  }
};

async function start() {
  try {
    const { models } = await json("v1/models");
    const model = models.find((m) => m.default) ?? models[0];
    document.getElementById("model").textContent = model
      ? `${model.name}, ${model.available ? "available" : `not available: ${model.message}`}`
      : "no model";
    if (model) {
      form.elements.num_inference_steps.max = model.limits.num_inference_steps;
    }
    const { jobs } = await json("v1/jobs?limit=12");
    for (const { name } of jobs) add(await json(`v1/jobs/${name}`), "beforeend");
  } catch (error) {
    tell(error);
  }
}

form.elements.key.onchange = () => {
  problem.textContent = "";
  list.replaceChildren();
  start();
};
start();
