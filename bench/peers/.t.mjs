import tf from "@tensorflow/tfjs";
import wasm from "@tensorflow/tfjs-backend-wasm";
if (process.env.F) tf.env().set("WASM_HAS_MULTITHREAD_SUPPORT", true);
wasm.setThreadsCount(2);
console.log(await tf.setBackend("wasm"), tf.getBackend());
console.log(await tf.env().getAsync("WASM_HAS_SIMD_SUPPORT"), wasm.getThreadsCount());
const a=tf.randomNormal([1024,1024]),b=tf.randomNormal([1024,1024]);
for(let i=0;i<4;i++){const t=performance.now(); tf.matMul(a,b).dataSync(); console.log(performance.now()-t);}
process.exit(0)
