// Vercel's AI SDK: its three providers for such servers, whole, streamed, structured, and in its loop with a tool.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const require = createRequire(process.cwd() + "/");
const { generateObject, generateText, stepCountIs, streamText, tool } = require("ai");
const { createAnthropic } = require("@ai-sdk/anthropic");
const { createOpenAI } = require("@ai-sdk/openai");
const { createOpenAICompatible } = require("@ai-sdk/openai-compatible");
const { z } = require("zod");

const name = process.env.FOREGUARD_MODEL;
const baseURL = process.env.FOREGUARD_URL + "/v1";
const openai = createOpenAI({ baseURL, apiKey: "none" });
const models = {
  compatible: createOpenAICompatible({ name: "lab", baseURL, supportsStructuredOutputs: true })(name),
  chat: openai.chat(name),
  response: openai.responses(name),
  message: createAnthropic({ baseURL, apiKey: "none" })(name),
};
const short = { maxOutputTokens: 64, temperature: 0 };
const lookUp = tool({
  description: "Look a number up.",
  inputSchema: z.object({ n: z.number() }),
  execute: async ({ n }) => String(n),
});

const whole = (model) => async (prompt) => {
  const done = await generateText({ model, prompt, ...short });
  return { text: done.text, finish: done.finishReason };
};

const streamed = (model) => async (prompt) => {
  const errors = [];
  const done = streamText({ model, prompt, ...short, onError: ({ error }) => errors.push(error) });
  let text = "";
  for await (const piece of done.textStream) text += piece;
  if (errors.length) throw errors[0];
  return { text, finish: await done.finishReason };
};

const structured = (model) => async (prompt) => {
  const schema = z.object({ yes: z.boolean() });
  const done = await generateObject({ model, prompt, schema, ...short });
  return { finish: done.finishReason, more: { own: done.object } };
};

const loop = (model) => async (prompt) => {
  const done = await generateText({ model, prompt, tools: { lookUp }, stopWhen: stepCountIs(4), ...short });
  return { text: done.text, finish: done.finishReason };
};

const cases = {};
for (const [api, model] of Object.entries(models)) {
  cases[api] = whole(model);
  cases[api + "_stream"] = streamed(model);
}
for (const api of ["compatible", "chat", "response"]) cases[api + "_structured"] = structured(models[api]);
for (const api of ["compatible", "chat"]) cases[api + "_loop"] = loop(models[api]);

const failed = (error) => ({
  error: error.name,
  said: error.message,
  code: error.data?.error?.code ?? null,
  finish: error.finishReason ?? null,
  text: error.text ?? null,
});

for await (const line of createInterface({ input: process.stdin })) {
  const { case: asked, prompt } = JSON.parse(line);
  const seen = await cases[asked](prompt).catch(failed);
  console.log(JSON.stringify(seen));
}
