// One answer at a time: what runs now, and how it is stopped.

let controller = null;

export const isBusy = () => controller !== null;

// Run `task(signal)` unless something runs. Resolves to whether it came to its end; false: stopped.
export async function run(task) {
  if (controller) return false;
  const own = (controller = new AbortController());
  document.body.classList.add("busy");
  try {
    await task(own.signal);
    return true;
  } catch (error) {
    if (own.signal.aborted) return false;
    throw error;
  } finally {
    controller = null;
    document.body.classList.remove("busy");
  }
}

export function stop() {
  controller?.abort();
}
