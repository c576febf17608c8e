package builds

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// kwokStages are the files of the kwok module that tell it how nodes become ready
// and pods run. Without stages kwok does nothing. The one that ends the pods of Jobs is left
// out: a Job that the benchmark compares sandboxes with is to have its pods running, as they do.
var kwokStages = []string{
	"kustomize/stage/node/fast/node-initialize.yaml",
	"kustomize/stage/node/heartbeat/node-heartbeat.yaml",
	"kustomize/stage/pod/fast/pod-ready.yaml",
	"kustomize/stage/pod/fast/pod-delete.yaml",
}

// KwokStages writes the stages of the pinned kwok module to one file and returns
// its path.
func (b *Builder) KwokStages(ctx context.Context) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/kwok")
	cmd.Dir = filepath.Join(b.Repo, kwokModule)
	cmd.Env = append(os.Environ(), "GOWORK=off")
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("find the kwok module: %w", err)
	}
	var stages bytes.Buffer
	for _, name := range kwokStages {
		data, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(out)), name))
		if err != nil {
			return "", err
		}
		stages.WriteString("---\n")
		stages.Write(data)
	}
	path := filepath.Join(b.Bin, "kwok-stages.yaml")
	return path, os.WriteFile(path, stages.Bytes(), 0o644)
}

// Install copies an executable into the folder of programs, so that processes can
// be started from it when the original (a temporary file of 'go run') is gone.
func (b *Builder) Install(name, from string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	program := Program{Name: name}
	sum := sha256.Sum256(data)
	key := hex.EncodeToString(sum[:])
	if _, err := os.Stat(b.path(program)); err == nil && b.Key(name) == key {
		return nil
	}
	next := b.path(program) + ".next"
	if err := os.WriteFile(next, data, 0o755); err != nil {
		return err
	}
	if err := os.Rename(next, b.path(program)); err != nil {
		return err
	}
	return os.WriteFile(b.keyPath(program), []byte(key), 0o644)
}
