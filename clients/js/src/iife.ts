export { connect, PushError } from "./index.js";
