"""Public data sets that `data get` downloads: where each file is, what its bytes must be, what its licence is.

Addresses are pinned to a commit, so that the files behind them cannot change; size and sha256 were taken from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import quote

_HOST = "https://raw.githubusercontent.com"


class RemoteFile(NamedTuple):
    """One file of a set."""

    name: str
    """Where it is put, relative to the set's directory."""
    url: str
    size: int
    """bytes"""
    sha256: str


@dataclass(frozen=True)
class PublicSet:
    """A named data set."""

    name: str
    about: str
    licence: str
    """As stated where the files come from."""
    repository: str
    """owner/name"""
    commit: str
    folder: str
    """In the repository; ends with a slash, or is empty."""
    listing: str
    """A line a file: sha256, size in bytes, path below `folder`."""

    @property
    def files(self) -> list[RemoteFile]:
        files = []
        for line in self.listing.split("\n")[1:-1]:
            sha256, size, name = line.split(" ", 2)
            url = f"{_HOST}/{self.repository}/{self.commit}/{quote(self.folder + name)}"
            files.append(RemoteFile(name, url, int(size), sha256))
        return files

    @property
    def size(self) -> int:
        """bytes of all files"""
        return sum(file.size for file in self.files)


PUBLIC_SETS = (
    PublicSet(
        "alpaca-chinese",
        "36,000 instructions, each in English and Chinese (Alpaca records with en_ fields)",
        "none stated; the English half derives from Stanford Alpaca, CC BY-NC 4.0",
        "open-chinese/alpaca-chinese-dataset",
        "7ae6bb212fa9ca487469537e12f35f8386e8eea0",
        "data/",
        """
39636da5e6df5a93ebc19f12850bd1aa8be244fd3e58e3b6403f251fa87ece36 773610 alpaca_chinese_part_0.json
afa9ab63b20ec14e26ae4aef9bfa6eacd8a338f53e6485b1870619805f66bead 773192 alpaca_chinese_part_1.json
ce52d82998f9247a37f84b990e8816eb99cb23713ebac6b9c73b1bfe98a0e32b 763442 alpaca_chinese_part_2.json
afdaa0af75a3ff25a28559fc9571fe29f6a780d4ec757f68120d98f50d85dbf9 821245 alpaca_chinese_part_3.json
b7ca7a9483ab4a74cfa47f1b3a061d4af81759778e7353a496780b45fb4ff5d4 772976 alpaca_chinese_part_4.json
8b568b221db373b392e6076bc721449e20b8787ed481ca4444112aec5347a7d3 805087 alpaca_chinese_part_5.json
c838f21963b84d3dbad354bafe10c81408151d5425713e2e8e18e65656ae2f46 832564 alpaca_chinese_part_6.json
20187096145b53135c4509effdaedd8b513cb899c5a9b81e429e9087467eb50e 833691 alpaca_chinese_part_7.json
b3e504c9dbdc05f3a71755784a96d2a08421e810f58715894449e3328443a156 782318 alpaca_chinese_part_8.json
5c35715a6e2cbe88777c1c1c4ef2ae8db97e9713adc1ba858e41ff6cd1752f8c 843321 alpaca_chinese_part_9.json
e50c25ff4eb02f891858048c069117306f68357cfddc80649451ff845df9607b 798798 alpaca_chinese_part_10.json
a4054c462deefd01ecfcb75e67bd2fe40f7d7e61a0f23eaabc0f1635bc03deef 849000 alpaca_chinese_part_11.json
79b2e5ad0551bf298e29e78ca64d8f7a765a884ed07d42ac081bca246a85149a 814216 alpaca_chinese_part_12.json
b00833a6e1cc1b4ff40ae60d6f14125ead82d214a3c7564d6e958c2eb4174bf3 824311 alpaca_chinese_part_13.json
ce179e59c9689a5fda3779ec7323ff05bc97eec413ff294986e49f269fb6a6a2 815856 alpaca_chinese_part_14.json
f3aa1412777ab9e11b1bfbd43abdeb4e7718fe3b98858cd20dea7ce93c759ce6 839892 alpaca_chinese_part_15.json
2aeef63f94423fa568e64165296febd965f8d010f16d4775fc599560cc6e54f1 797452 alpaca_chinese_part_16.json
34ef2b7e0792442812b9e626f15aff37d3d9bd4470dd67d078d40cf0a1ad6176 820768 alpaca_chinese_part_17.json
475e1eb2094d54e60cef652092f81ac9e3a14f8882ec8821cc22a0993f12e9de 857280 alpaca_chinese_part_18.json
c202e73821c5318866d475f6c994a045f41906bc5446aeb3352a7a0ea0148bda 822452 alpaca_chinese_part_19.json
78803417d9be920bb0a292b54c2963557a656f40eddf7e605d6a7b7acab0f47e 787607 alpaca_chinese_part_20.json
ece437ebe0d95066e1f9d1cfde43687dfc8775bf03dde3913650f67768758639 794223 alpaca_chinese_part_21.json
bb580a4d1e90db229817a65fae9ba8eadd0820b58a02b301440e6b743d1b2664 836637 alpaca_chinese_part_22.json
1ca1f94da47de7d0e634b5d725e1d6d6a7daf5b34050c318f9df685ce3d1affb 776259 alpaca_chinese_part_23.json
7860ceaa2395b6a1aa989c2d3727fd26831bdaa36ae176b6cd8688030fe6adb6 821545 alpaca_chinese_part_24.json
ed1124c8ddcf23db1b94bd49335bfc9a5d863ce350c1ad6a1971a0c7d2562851 837045 alpaca_chinese_part_25.json
fd2365f66a21c57d0b664081fa21b56b37d3fd0fd7f60c2f00cdfb4476e3e567 818795 alpaca_chinese_part_26.json
3aaa7314f1efdf40b066d81a45501c452f188bc76c13446672e8c9714282d11e 822747 alpaca_chinese_part_27.json
1e71bc63c7ade233a609a4d8256775e75b52f801e0a825d8b94ddc4b4171e020 839796 alpaca_chinese_part_28.json
aeb4087b38ec0ecbbaf166d86b7e7cc561a39f325b0f3dde86980ec92a1ef2cb 820469 alpaca_chinese_part_29.json
ade9a9813531a9ad8cf1e170ec317ad587654d6b0a032786415647acbed1f5d1 850199 alpaca_chinese_part_30.json
5d11feee8c26430c1687cf65a43d6d0167c2cf57b27b053446f0cb31f35e0b1e 772875 alpaca_chinese_part_31.json
e2e230ed20ff4c9f4923e989d38752f06b29181e771ccfb7adaa414ef31e73b7 820656 alpaca_chinese_part_32.json
d55c17b27918360ee93724a01255e0bb59699dc3061ebc3f4bbc958c7f4e7987 800437 alpaca_chinese_part_33.json
22f74f484c95224b5434a0c62f29b378ae7f6f95e1d8884da7945374e5d7ae2a 827385 alpaca_chinese_part_34.json
0c4d40bc6e3e783bad857b5dbeac72930198ea59e5b8c6f6cba76775e88ab9d9 846272 alpaca_chinese_part_35.json
""",
    ),
    PublicSet(
        "alpaca-demo",
        "1,000 instructions each in English and Chinese (Alpaca records)",
        "Apache-2.0 repository; the records derive from alpaca_gpt4, CC BY-NC 4.0",
        "hiyouga/LLaMA-Factory",
        "ff6d4d12eeb035d6ce06805a5733dd7b29f2ac30",
        "data/",
        """
bcc37c64db1a739a0789a1b81f251146fcf4459f903474bc9e3c21bbb5628318 859893 alpaca_en_demo.json
d5a4be46ae70d23a461ffc16048069324c0865ee9aa0c8730e21ac4b65ea0f08 636036 alpaca_zh_demo.json
""",
    ),
    PublicSet(
        "chinese-poetry",
        "Tang and Song poems and the Analects, for pretraining (records with paragraphs)",
        "MIT; the texts are in the public domain",
        "chinese-poetry/chinese-poetry",
        "99ebbef7e1345c0985c44b9fd96a3f9e776f117b",
        "",
        """
4f88f429938082523cdc72a1612bd7a7c3e3f7a33f8192c61ae51340efc3c92d 408405 全唐诗/poet.tang.0.json
6e703b8d8dcedbd6110f6d48d043665ca2131db2035a5bfcef5e59a19aeb6d75 477519 全唐诗/poet.tang.1000.json
ec28efa7e2ae9cdbbba09f0ed186e32ccae47a325ad1e5816b7ad56071c1665a 417948 全唐诗/poet.tang.2000.json
9e4ba2323752b6b9fbdba875cdbc6a26636fe0cabc85fd066370d4915952001f 453811 全唐诗/poet.tang.3000.json
7761bc5ef50305753ea3dcea9e1ef3164e153e3ee366169e9c5a9a7d85b21b22 406936 宋词/ci.song.0.json
5f79a2d9011e6d414f04e51176c5d4f4c762fd784dce98b035968367b6f2ef4e 368986 宋词/ci.song.1000.json
1791391a8a2ca855e133f7ea48bf0c104b3890d628ae2929f9378960a66c1427 417829 宋词/ci.song.3000.json
48c3e33bab920e17929ea08300c4c5ca72b246669ed5767e5cb985d894514150 395848 宋词/ci.song.4000.json
1e10ee4be18e225c2efa0bb8d58691ebb6d40cd83588f308d9635a37392bdadd 388016 宋词/ci.song.5000.json
bc336a3839706377892719db44c48a09794a493190535a42bf1c7d4c4233e96c 74799 论语/lunyu.json
""",
    ),
    PublicSet(
        "dpo-demo",
        "English preference pairs (ShareGPT with chosen and rejected)",
        "Apache-2.0 repository; the records have licences of their own upstream",
        "hiyouga/LLaMA-Factory",
        "ff6d4d12eeb035d6ce06805a5733dd7b29f2ac30",
        "data/",
        """
b949be2421cfa62744afcf1b479f95b299d643d1a4c1c97d1341b314a1aa5cb3 1575286 dpo_en_demo.json
""",
    ),
    PublicSet(
        "fewclue",
        "Chinese news topics (tnews) and inference (ocnli) in few examples",
        "none stated",
        "CLUEbenchmark/FewCLUE",
        "62a02c6f31cf32814cfe522f78ef088228840f8d",
        "datasets/",
        """
8aa37d994fa6148e673c1357a44ee1409cab0220f773b55dd8e5733446804725 214448 tnews/dev_few_all.json
261c91076d36a2e64bad671719cbeccbfce8e7032716de4dbb495bccbb971c15 230596 tnews/train_few_all.json
19909c69baee76687f0ffeb73b5eac642e77a32a8fe661325c6f9338ca9e4c99 385206 tnews/test_public.json
a2aa50aae711ebc6453c9c034eeb3cd67c1e6f2074abd52a9fa7d0c1f91f2c7a 56423 ocnli/dev_few_all.json
8101ebe3004bd7a3d3755e774f59c85676a54092145926a4429b064da9059bb4 49359 ocnli/train_few_all.json
c495116fec5f9fca429e280d62d080367837dda4346736498daa97ac549fac57 881920 ocnli/test_public.json
""",
    ),
    PublicSet(
        "financial-phrasebank",
        "4,845 financial headlines and their sentiment (CSV: Sentiment, Headline)",
        "none stated in this copy; upstream Financial PhraseBank is CC BY-NC-SA 3.0",
        "danteoconnor/BERT-GPT-Financial-Sentiment-Analysis",
        "921023c24a52945daa2b004efd5ff8dec7edeacd",
        "",
        """
505d0dbcd90a4ba81944590d802e7410392882177b7bde138a92a1924a442e00 676859 all-data.csv
""",
    ),
    PublicSet(
        "gsm8k",
        "7,473 school problems in words, with worked answers",
        "MIT",
        "openai/grade-school-math",
        "3101c7d5072418e28b9008a6636bde82a006892c",
        "grade_school_math/data/",
        """
17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465 4166206 train.jsonl
""",
    ),
    PublicSet(
        "hh-rlhf",
        "2,312 pairs on harmlessness, chosen and rejected transcripts; offensive content",
        "MIT",
        "anthropics/hh-rlhf",
        "354e5c3cb8960630860dd5774a6ac2a58313bf4d",
        "harmless-base/",
        """
ebfaaed21162a4de120ae85366075b34425e2a6303fac59b99555002f7016f03 742801 test.jsonl.gz
""",
    ),
    PublicSet(
        "human-eval",
        "164 programming problems with tests",
        "MIT",
        "openai/human-eval",
        "6d43fb980f9fee3c892a914eda09951f772ad10d",
        "data/",
        """
b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef 44877 HumanEval.jsonl.gz
""",
    ),
    PublicSet(
        "multi30k",
        "31,014 captions in English, German and French, a sentence a line",
        "none stated; images under Flickr terms, for non-commercial research and education",
        "multi30k/dataset",
        "a3d2e0d26b56f3846f66a952536ffed4e401d05a",
        "data/task1/raw/",
        """
9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8 22890 test_2016_flickr.de.gz
611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9 21077 test_2016_flickr.en.gz
6d326e188d259fb1d04ac19eae3af956559b3a0b93d7635e56c90987c40c8b90 22310 test_2016_flickr.fr.gz
726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6 637044 train.de.gz
d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f 568929 train.en.gz
622e75069e9f4c577425c4f277116ce66e63a2401c0a2312d90073cb12379a3c 604242 train.fr.gz
f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a 24681 val.de.gz
14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28 21650 val.en.gz
ca3106f1a72390591d25f6c45cb4cd39dec4cd3f123e099748a3ce5256c160e9 23001 val.fr.gz
""",
    ),
    PublicSet(
        "mt-bench",
        "80 two-turn questions",
        "Apache-2.0",
        "lm-sys/FastChat",
        "0e6d3e4beaab66f4d3f93db72541a4abab8af28d",
        "fastchat/llm_judge/data/mt_bench/",
        """
119565adbab82227089cefdb44c8d7e2cf04dc0a0ec233634c82e7d4e2a944f7 48929 question.jsonl
""",
    ),
    PublicSet(
        "raschka-instruction",
        "1,100 short English instructions (Alpaca records)",
        "Apache-2.0",
        "rasbt/LLMs-from-scratch",
        "28c65cdfbc3338e2e040016eea4b7fdf556e4d57",
        "ch07/01_main-chapter-code/",
        """
7e09a9af353722ca15c18bc580f093f9c39d3178335a75177319cb1e1d163944 203524 instruction-data.json
""",
    ),
    PublicSet(
        "raschka-preference",
        "the same 1,100 instructions with chosen and rejected answers",
        "Apache-2.0",
        "rasbt/LLMs-from-scratch",
        "28c65cdfbc3338e2e040016eea4b7fdf556e4d57",
        "ch07/04_preference-tuning-with-dpo/",
        """
305315abf14f65fa42c01a0877572f832606571c2a7d49f152ac1d758b16756e 386968 instruction-data-with-preference.json
""",
    ),
    PublicSet(
        "self-instruct",
        "175 seed tasks and 252 user-oriented tasks",
        "Apache-2.0",
        "yizhongw/self-instruct",
        "0b26ccaa415992100fa32df62d41b994cf928e23",
        "",
        """
7779004fa198fdf27cf70a159363879d8a26c53329e11b436af17b3941875f48 110934 data/seed_tasks.jsonl
81d60a117db495cecedecd9193504fd07c5b5a42f6699ef6b0f9da10fc22f42e 170193 human_eval/user_oriented_instructions.jsonl
""",
    ),
    PublicSet(
        "tatoeba-zh-en",
        "26,388 sentences in English and Chinese (tab-separated)",
        "CC BY 2.0 FR (tatoeba.org, manythings.org)",
        "vivounicorn/attention-seq2seq",
        "4baca98af513f1b01f65898eb62bcd411fc19be3",
        "cmn-eng/",
        """
af1099fbf65a5c7041ff4e960306b13138793887335b53b4d9f698faefa6593a 3765470 cmn.txt
""",
    ),
    PublicSet(
        "tinyshakespeare",
        "1.1 MB of Shakespeare's plays, for pretraining",
        "none stated; the text is in the public domain",
        "karpathy/char-rnn",
        "6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e",
        "data/tinyshakespeare/",
        """
86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed 1115394 input.txt
""",
    ),
)
