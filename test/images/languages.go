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
