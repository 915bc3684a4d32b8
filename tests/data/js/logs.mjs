// Sends records through one of the JavaScript SDK's exporters: node logs.mjs http|proto|grpc URL COUNT
import { logs, SeverityNumber } from "@opentelemetry/api-logs";
import { BatchLogRecordProcessor, LoggerProvider } from "@opentelemetry/sdk-logs";
import { resourceFromAttributes } from "@opentelemetry/resources";

const [kind, url, count] = process.argv.slice(2);
const { OTLPLogExporter } = await import(`@opentelemetry/exporter-logs-otlp-${kind}`);
const exporter = new OTLPLogExporter({ url, compression: "gzip" });
const provider = new LoggerProvider({
  resource: resourceFromAttributes({ "service.name": "js" }),
  processors: [new BatchLogRecordProcessor({ exporter, maxQueueSize: 10000 })],
});
logs.setGlobalLoggerProvider(provider);
const logger = logs.getLogger("js.client", "1.0");
for (let n = 0; n < Number(count); n++) {
  logger.emit({
    severityNumber: SeverityNumber.WARN,
    severityText: "WARN",
    body: `message ${n} ✗`,
    eventName: "js.sent",
    attributes: { n, ratio: 0.5, flag: true, list: ["a", "b"], nested: { deep: [1, { x: null }] }, bytes: new Uint8Array([1, 2, 255]) },
  });
}
await provider.shutdown();
