package cluster

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// site is a server on each node, and a service in front of them.
const site = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: site}
spec:
  replicas: 3
  selector: {matchLabels: {app: site}}
  template:
    metadata: {labels: {app: site}}
    spec:
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: site}}}
      terminationGracePeriodSeconds: 0
      containers:
      - name: site
        image: busybox:1
        command: [sh, -c, 'mkdir /www; hostname >/www/index.html; echo serving; exec httpd -f -p 8080 -h /www']
        ports: [{containerPort: 8080, hostPort: 8081}]
        readinessProbe: {httpGet: {port: 8080, path: /index.html}, periodSeconds: 1}
        resources: {limits: {memory: 64Mi}}
---
apiVersion: v1
kind: Service
metadata: {name: site}
spec:
  type: NodePort
  clusterIP: 10.96.0.80
  selector: {app: site}
  ports: [{port: 80, targetPort: 8080, nodePort: 30080}]
`

// TestCluster proves that it is a whole Kubernetes, that nodes come and go, and that
// nothing of it is left.
func TestCluster(t *testing.T) {
	ctx := t.Context()
	c := Start(t, Options{})
	img, err := Busybox(ctx, t.Output(), "sh")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Push(ctx, "library/busybox:1", img); err != nil {
		t.Fatal(err)
	}
	kubectl(t, c, site, "apply", "-f", "-")
	kubectl(t, c, "", "rollout", "status", "deployment/site", "--timeout=120s")
	pods := sitePods(t, c)
	if len(pods) != 3 || pods["node-1"] == "" || pods["node-2"] == "" || pods["node-3"] == "" {
		t.Fatalf("pods by node: %v", pods)
	}
	reach(t, c, pods)
	for node, pod := range pods {
		if out := kubectl(t, c, "", "logs", pod); !strings.Contains(out, "serving") {
			t.Errorf("the log of %s on %s is %q", pod, node, out)
		}
	}
	cutPower(t, c, pods)
	killContainerd(t, c, pods["node-1"])

	before, dir := spaces(t, c), c.Dir
	if len(left(t, dir, before)) == 0 {
		t.Error("nothing is found of a cluster that runs")
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	nothingLeft(t, dir, before)
}

// kubectl runs kubectl, which has to succeed, and returns its output.
func kubectl(t *testing.T, c *Cluster, stdin string, args ...string) string {
	t.Helper()
	out, bad, err := c.Kubectl(t.Context(), stdin, args...)
	if err != nil {
		t.Fatalf("kubectl %s: %v: %s%s", strings.Join(args, " "), err, out, bad)
	}
	return out
}

// sitePods returns the pods of the site by node.
func sitePods(t *testing.T, c *Cluster) map[string]string {
	t.Helper()
	out := kubectl(t, c, "", "get", "pods", "-l", "app=site", "-o", `jsonpath={range .items[*]}{.spec.nodeName} {.metadata.name}{"\n"}{end}`)
	pods := map[string]string{}
	for line := range strings.Lines(out) {
		node, pod, _ := strings.Cut(strings.TrimSpace(line), " ")
		pods[node] = pod
	}
	return pods
}

// reach reaches all pods in every way that there is.
func reach(t *testing.T, c *Cluster, pods map[string]string) {
	t.Helper()
	client := &http.Client{Transport: c.Transport()}
	defer client.CloseIdleConnections()
	outside := func(url string) func() string {
		return func() string { return get(t, client, url) }
	}
	for way, ask := range map[string]func() string{
		"the service, from a pod": func() string {
			return kubectl(t, c, "", "exec", pods["node-2"], "--", "wget", "-qO-", "http://10.96.0.80/")
		},
		"the service, from the test":        outside("http://10.96.0.80/"),
		"a port of a node, from the test":   outside("http://" + c.Node(2).IP + ":30080/"),
		"the service's port, from the node": func() string { return nodeGet(t, c.Node(3), "http://10.96.0.80/") },
	} {
		seen := map[string]bool{}
		// Each answer is a pod's, at random, once kube-proxy has heard of all.
		waitFor(t, way+" to lead to all pods", func(context.Context) error {
			if seen[strings.TrimSpace(ask())] = true; len(seen) != len(pods) {
				return fmt.Errorf("reached are %v, want %v", seen, pods)
			}
			return nil
		})
	}
	for node, pod := range pods {
		i := strings.TrimPrefix(node, "node-")
		if got := strings.TrimSpace(outside("http://10.89.0.1" + i + ":8081/")()); got != pod {
			t.Errorf("the host port of %s leads to %q, want %s", node, got, pod)
		}
	}
	// The API server speaks TLS alone, and says so.
	if _, bad, err := c.Kubectl(t.Context(), "", "exec", pods["node-3"], "--", "wget", "-qO-", "http://10.96.0.1:443/"); err == nil || !strings.Contains(bad, "400") {
		t.Errorf("the API server, from a pod: %v, %s", err, bad)
	}
}

// get returns a page.
func get(t *testing.T, client *http.Client, url string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Close = true // the next one may lead to another pod
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }() // read
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v", url, resp.Status, err)
	}
	return string(b)
}

// nodeGet gets a page with what every Debian has.
func nodeGet(t *testing.T, n *Node, url string) string {
	t.Helper()
	host := strings.TrimSuffix(strings.TrimPrefix(url, "http://"), "/")
	out, err := n.Exec(t.Context(), "bash", "-c",
		`exec 3<>/dev/tcp/`+host+`/80; printf 'GET / HTTP/1.0\r\n\r\n' >&3; tail -n1 <&3`)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// cutPower cuts a node's power: the cluster sees it, and its pod is back when it is.
func cutPower(t *testing.T, c *Cluster, pods map[string]string) {
	t.Helper()
	n := c.Node(2)
	boots := func() string {
		return kubectl(t, c, "", "get", "pod", pods[n.Name], "-o", "jsonpath={.status.containerStatuses[0].restartCount}")
	}
	if got := boots(); got != "0" {
		t.Errorf("the pod was restarted %s times before the power cut", got)
	}
	if err := os.WriteFile(n.Path("/var/lib/mark"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := n.PowerCut(); err != nil {
		t.Fatal(err)
	}
	kubectl(t, c, "", "wait", "node/"+n.Name, "--for=condition=Ready=Unknown", "--timeout=60s")
	kubectl(t, c, "", "wait", "deployment/site", "--for=jsonpath={.status.availableReplicas}=2", "--timeout=60s")
	begin := time.Now()
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitReady(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	t.Logf("the node was ready again after %v", time.Since(begin))
	kubectl(t, c, "", "wait", "deployment/site", "--for=jsonpath={.status.availableReplicas}=3", "--timeout=60s")
	if got := sitePods(t, c); got[n.Name] != pods[n.Name] {
		t.Errorf("after the power cut the pods are %v, before they were %v", got, pods)
	}
	if got := boots(); got != "1" {
		t.Errorf("the pod was restarted %s times by the power cut", got)
	}
	if _, err := os.Stat(n.Path("/var/lib/mark")); err != nil {
		t.Errorf("what was on the node's disk: %v", err)
	}
}

// killContainerd kills a node's containerd: it is restarted, and containers go on.
func killContainerd(t *testing.T, c *Cluster, pod string) {
	t.Helper()
	n := c.Node(1)
	for _, service := range []string{"containerd", "kubelet"} {
		old := n.Service(service)
		if err := n.Kill(t.Context(), service); err != nil {
			t.Fatal(err)
		}
		waitFor(t, service+" to be restarted", func(context.Context) error {
			if now := n.Service(service); now == 0 || now == old {
				return fmt.Errorf("its process is %d, was %d", now, old)
			}
			return nil
		})
	}
	waitFor(t, "an answer of containerd", func(ctx context.Context) error {
		_, err := n.Exec(ctx, "ctr", "version")
		return err
	})
	waitFor(t, "exec in a pod", func(ctx context.Context) error {
		out, bad, err := c.Kubectl(ctx, "", "exec", pod, "--", "hostname")
		if err == nil && strings.TrimSpace(out) != pod {
			err = fmt.Errorf("the host name is %q", out)
		}
		if err != nil {
			return fmt.Errorf("%w: %s", err, bad)
		}
		return nil
	})
	if got := kubectl(t, c, "", "get", "pod", pod, "-o", "jsonpath={.status.containerStatuses[0].restartCount}"); got != "0" {
		t.Errorf("the pod was restarted %s times", got)
	}
}

// waitFor calls try until it succeeds.
func waitFor(t *testing.T, what string, try func(ctx context.Context) error) {
	t.Helper()
	if err := (&Cluster{}).wait(t.Context(), what, try); err != nil {
		t.Fatal(err)
	}
}
