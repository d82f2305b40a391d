/** `lyceum pretrain CONFIG.yaml`. */
import { pretrain, pretrainSchema } from "../stages/pretrain.js";
import { runStage, type StageFlags } from "./stage.js";

export async function command(file: string, flags: StageFlags): Promise<void> {
  const dir = await runStage(file, flags, pretrainSchema, pretrain);
  console.log(`${dir}/model`);
}
