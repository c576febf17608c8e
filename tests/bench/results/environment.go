package results

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/prometheus/procfs"
	appsv1 "k8s.io/api/apps/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/discovery"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Environment is what was measured, and on what.
type Environment struct {
	// Date is the day, by UTC.
	Date string `json:"date"`
	// Commit is that of the source tree; "changed" after it says that more than documents differed.
	Commit     string `json:"commit"`
	Kubernetes string `json:"kubernetes"`
	CPUs       int    `json:"cpus"`
	CPUModel   string `json:"cpuModel"`
	MemoryGiB  int    `json:"memoryGiB"`
	// Load is the load average of the machine before the run: of 1, 5 and 15 minutes.
	Load string `json:"load"`
	// Fsync says whether etcd writes through to the disk.
	Fsync string `json:"fsync"`
	// Operator is how it was deployed: replicas, image, flags.
	Operator string `json:"operator"`
}

const unknown = "unknown"

// Describe returns what is there to be measured: this machine, the cluster that KUBECONFIG names
// and the operator that is deployed there under that name.
func Describe(ctx context.Context, server discovery.ServerVersionInterface, api client.Reader, deployment client.ObjectKey) (Environment, error) {
	e := Environment{
		Date: time.Now().UTC().Format(time.DateOnly), Commit: commit(ctx), Fsync: fsync(),
		CPUs: runtime.NumCPU(), CPUModel: unknown, Load: unknown,
	}
	version, err := server.ServerVersion()
	if err != nil {
		return e, fmt.Errorf("asking for the version: %w", err)
	}
	e.Kubernetes = version.GitVersion
	if e.Operator, err = operator(ctx, api, deployment); err != nil {
		return e, err
	}
	proc, err := procfs.NewDefaultFS()
	if err != nil {
		return e, fmt.Errorf("reading /proc: %w", err)
	}
	if cpus, err := proc.CPUInfo(); err == nil && len(cpus) > 0 {
		e.CPUModel = cpus[0].ModelName
	}
	if memory, err := proc.Meminfo(); err == nil && memory.MemTotalBytes != nil {
		e.MemoryGiB = int(*memory.MemTotalBytes >> 30)
	}
	if load, err := proc.LoadAvg(); err == nil {
		e.Load = fmt.Sprintf("%.2f %.2f %.2f", load.Load1, load.Load5, load.Load15)
	}
	return e, nil
}

// commit is that of the source tree that the benchmark runs in. Documents are left out, because
// runs write to them.
func commit(ctx context.Context) string {
	head, err := exec.CommandContext(ctx, "git", "rev-parse", "--short=12", "HEAD").Output()
	if err != nil {
		return unknown
	}
	id := strings.TrimSpace(string(head))
	if exec.CommandContext(ctx, "git", "diff", "--quiet", "HEAD", "--", ":/", ":(top,exclude)docs").Run() != nil {
		id += " changed"
	}
	return id
}

// ClusterDirectory is where the hermetic cluster keeps its files.
func ClusterDirectory() string { return filepath.Dir(os.Getenv("KUBECONFIG")) }

// fsync asks the hermetic cluster, which records it beside its kubeconfig.
func fsync() string {
	data, err := os.ReadFile(filepath.Join(ClusterDirectory(), "cluster.json"))
	var choice struct{ Fsync *bool }
	switch {
	case err != nil || json.Unmarshal(data, &choice) != nil || choice.Fsync == nil:
		return unknown
	case *choice.Fsync:
		return "on"
	}
	return "off"
}

func operator(ctx context.Context, api client.Reader, name client.ObjectKey) (string, error) {
	var deployed appsv1.Deployment
	switch err := api.Get(ctx, name, &deployed); {
	case apierrors.IsNotFound(err):
		return "not deployed: a process outside of the cluster", nil
	case err != nil:
		return "", fmt.Errorf("looking for the operator: %w", err)
	}
	c := deployed.Spec.Template.Spec.Containers[0]
	return fmt.Sprintf("%d replicas of %s %s", deployed.Status.ReadyReplicas, c.Image, strings.Join(c.Args, " ")), nil
}

// WriteText prints it for a terminal.
func (e *Environment) WriteText(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintf(w, "commit\t%s, %s\n", e.Commit, e.Date)
	fmt.Fprintf(w, "Kubernetes\t%s, pods simulated by kwok\n", e.Kubernetes)
	fmt.Fprintf(w, "machine\t%d CPUs (%s), %d GiB, load %s\n", e.CPUs, e.CPUModel, e.MemoryGiB, e.Load)
	fmt.Fprintf(w, "etcd fsync\t%s\n", e.Fsync)
	fmt.Fprintf(w, "operator\t%s\n", e.Operator)
	return w.Flush()
}
