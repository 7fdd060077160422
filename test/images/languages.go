package images

// pythonLayer is what all images with Python have above the base.
func pythonLayer() layerRecipe { return layerRecipe{name: "python", packages: []string{"python3"}} }

func numpyLayer() layerRecipe {
	lib := "usr/lib/" + triplet() + "/"
	return layerRecipe{
		name: "numpy", packages: []string{"python3-numpy"},
		files: []file{ // the packages' scripts choose among implementations
			{path: lib + "libblas.so.3", link: "blas/libblas.so.3"},
			{path: lib + "liblapack.so.3", link: "lapack/liblapack.so.3"},
		},
	}
}

// pythonApp is the layer of the image's program.
func pythonApp(image, program string) layerRecipe {
	return layerRecipe{name: image + "-app", files: []file{{path: "app/"}, {path: "app/main.py", text: program}}}
}

func pythonEnv() map[string]string {
	return map[string]string{"PYTHONDONTWRITEBYTECODE": "1", "LANG": "C.UTF-8"}
}

// python imports what a small service imports of the standard library.
func python() recipe {
	const program = `import argparse, asyncio, base64, collections, concurrent.futures, configparser, contextlib, csv, ctypes, dataclasses, datetime
import decimal, email.message, enum, fractions, functools, gzip, hashlib, hmac, html.parser, http.client, http.server, importlib.metadata
import inspect, io, itertools, json, logging.config, lzma, multiprocessing, pathlib, pickle, random, re, secrets, shutil, socket
import sqlite3, ssl, statistics, string, subprocess, tarfile, tempfile, threading, time, typing, unittest.mock, urllib.request, uuid
import xml.etree.ElementTree, zipfile, zlib, zoneinfo


async def ten():
    return sum(await asyncio.gather(*(asyncio.sleep(0, i) for i in range(10))))


db = sqlite3.connect(":memory:")
db.execute("create table t (n integer)")
db.executemany("insert into t values (?)", ((i,) for i in range(1000)))
total = db.execute("select sum(n) from t").fetchone()[0]
back = json.loads(json.dumps({"tree": [1, 2, 3], "zone": str(zoneinfo.ZoneInfo("Europe/Berlin"))}))
root = xml.etree.ElementTree.fromstring("<a><b/><b/></a>")
text = gzip.decompress(gzip.compress(lzma.decompress(lzma.compress(b"abc"))))
context = ssl.create_default_context()
print("asyncio", asyncio.run(ten()), "sqlite", total, "json", len(back["tree"]), back["zone"], "xml", len(root),
      "sha256", hashlib.sha256(text).hexdigest()[:8], "ssl", context.verify_mode.name, flush=True)
while True:
    time.sleep(60)
`
	return recipe{
		layers:     []layerRecipe{base(), pythonLayer(), pythonApp("python", program)},
		env:        pythonEnv(),
		entrypoint: []string{"python3", "/app/main.py"},
		spec:       Spec{Repository: "python", Line: "asyncio 45 sqlite 499500 json 3 Europe/Berlin xml 2 sha256 ba7816bf ssl CERT_REQUIRED"},
	}
}

// numpy computes with it, which reads a few hundred of its files.
func numpy() recipe {
	const program = `import time
import numpy as np

a = np.arange(10000, dtype=np.int64).reshape(100, 100)
print("trace", int(np.trace(a @ a.T)), "sum", round(np.linalg.solve(2 * np.eye(50), np.ones(50)).sum(), 6), flush=True)
while True:
    time.sleep(60)
`
	return recipe{
		docker:     true,
		layers:     []layerRecipe{base(), pythonLayer(), numpyLayer(), pythonApp("numpy", program)},
		env:        pythonEnv(),
		entrypoint: []string{"python3", "/app/main.py"},
		// The sum of the squares below 10000, and fifty halves.
		spec: Spec{Repository: "numpy", Line: "trace 333283335000 sum 25.0"},
	}
}

// golang compiles and runs a program: few of its many files are read.
func golang() recipe {
	const program = `package main

import (
	"fmt"
	"time"
)

func main() {
	sum := 0
	for i := range [1000]int{} {
		sum += i
	}
	fmt.Println("sum", sum)
	time.Sleep(time.Hour)
}
`
	return recipe{
		layers: []layerRecipe{base(), {name: "golang", packages: []string{"golang-go"}}, {name: "golang-app", files: []file{
			{path: "src/"}, {path: "src/main.go", text: program},
		}}},
		env:        map[string]string{"CGO_ENABLED": "0", "GOCACHE": "/tmp/gocache", "GOFLAGS": "-mod=mod", "GO111MODULE": "off"},
		entrypoint: []string{"go", "run", "/src/main.go"},
		spec:       Spec{Repository: "golang", Line: "sum 499500"},
	}
}

// pySci computes with scipy and pandas.
func pySci() recipe {
	const program = `import time
import numpy as np
import pandas as pd
from scipy import integrate, linalg, optimize, stats

frame = pd.DataFrame({"group": ["a", "b"] * 500, "value": np.arange(1000)})
means = frame.groupby("group")["value"].mean()
area = integrate.quad(lambda x: x * x, 0, 3)[0]
root = optimize.brentq(lambda x: x * x - 2, 0, 2)
determinant = linalg.det(2 * np.eye(4))
print("means", means["a"], means["b"], "area", round(area, 6), "root", round(root, 6), "det", round(determinant, 6),
      "normal", round(float(stats.norm.cdf(0)), 6), flush=True)
while True:
    time.sleep(60)
`
	return recipe{
		layers: []layerRecipe{
			base(), pythonLayer(), numpyLayer(), {name: "scipy", packages: []string{"python3-scipy"}},
			{name: "pandas", packages: []string{"python3-pandas"}}, pythonApp("py-sci", program),
		},
		env:        pythonEnv(),
		entrypoint: []string{"python3", "/app/main.py"},
		spec:       Spec{Repository: "py-sci", Line: "means 499.0 500.0 area 9.0 root 1.414214 det 16.0 normal 0.5"},
	}
}

// javaApp is a program in one source file, which the runtime compiles as it starts:
// that reads more of the runtime than a compiled one would.
func javaApp() recipe {
	const program = `import java.math.BigInteger;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.util.HexFormat;
import java.util.TreeMap;
import java.util.concurrent.CompletableFuture;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import java.util.stream.IntStream;

public class Main {
    public static void main(String[] args) throws Exception {
        var squares = IntStream.range(0, 1000).parallel().mapToLong(i -> (long) i * i).sum();
        var later = CompletableFuture.supplyAsync(() -> BigInteger.TWO.pow(100).mod(BigInteger.valueOf(1_000_007)));
        var words = Pattern.compile(" ").splitAsStream("a b c b a b")
            .collect(Collectors.groupingBy(w -> w, TreeMap::new, Collectors.counting()));
        var digest = MessageDigest.getInstance("SHA-256").digest("abc".getBytes(StandardCharsets.UTF_8));
        System.out.println("squares " + squares + " power " + later.get() + " words " + words + " digest "
            + HexFormat.of().formatHex(digest, 0, 4));
        Thread.sleep(Long.MAX_VALUE);
    }
}
`
	return recipe{
		layers: []layerRecipe{
			base(), {name: "java-libraries", packages: []string{"java-common", "ca-certificates", "libnss3", "libcups2", "libfontconfig1", "libharfbuzz0b"}},
			{name: "java", packages: []string{"default-jre-headless"}}, {name: "java-app", files: []file{
				{path: "app/"}, {path: "app/Main.java", text: program},
				{path: "usr/local/bin/java", link: "/usr/lib/jvm/default-java/bin/java"}, // an alternative, that scripts choose
			}},
		},
		entrypoint: []string{"java", "/app/Main.java"},
		spec:       Spec{Repository: "java-app", Line: "squares 332833500 power 698635 words {a=2, b=3, c=1} digest ba7816bf"},
	}
}

// gcc compiles and runs a program in C.
func gcc() recipe {
	const script = `set -e
cc -O2 -o /tmp/main /app/main.c -lm
exec /tmp/main
`
	const program = `#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int by_value(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }

int main(void) {
  int values[1000];
  double roots = 0;
  for (int i = 0; i < 1000; i++) {
    values[i] = (i * 7919) % 1000;
    roots += sqrt((double)i * i);
  }
  qsort(values, 1000, sizeof *values, by_value);
  printf("sorted %d %d roots %.1f\n", values[0], values[999], roots);
  fflush(stdout);
  for (;;) pause();
}
`
	return recipe{
		layers: []layerRecipe{
			base(), {name: "binutils", packages: []string{"binutils"}}, {name: "gcc", packages: []string{"gcc", "libc6-dev"}},
			{name: "g++", packages: []string{"g++", "make"}}, {name: "gcc-app", files: []file{
				{path: "app/"}, {path: "app/main.c", text: program}, {path: "app/run.sh", text: script},
				{path: "usr/local/bin/cc", link: "/usr/bin/gcc"}, // an alternative, that scripts choose
			}},
		},
		entrypoint: []string{"sh", "/app/run.sh"},
		spec:       Spec{Repository: "gcc", Line: "sorted 0 999 roots 499500.0"},
	}
}
