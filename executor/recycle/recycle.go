// Package recycle is about what a restart of all containers in place leaves of the last
// owner, because it belongs to the pod and not to a container: /dev/shm, System V IPC,
// POSIX message queues, and the files that the runtime shares among the pod's containers.
//
// Before the restart the launcher, in the sandbox container, removes what it may of the
// first three (Clean). After it the executor, which starts before all other containers,
// looks whether everything is as it was at its first start, when the pod was new
// (AtStart). It takes no privilege to look; what it cannot see counts as a difference,
// and a pod that differs is never used again.
package recycle

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/opensandbox/operator/executor/store"
)

const (
	baselineFile = "pod-files.json"
	markerFile   = "restart-requested"
)

// Pod is what is shared by the containers of a pod.
type Pod struct {
	// Dirs are empty in a new pod.
	Dirs []string
	// Files are as the runtime has made them.
	Files []string
	// IPC is the link to the IPC namespace.
	IPC string
}

// ThisPod is the pod that the program runs in.
func ThisPod() Pod {
	return Pod{
		Dirs:  []string{"/dev/shm", "/dev/mqueue"},
		Files: []string{"/etc/hostname", "/etc/hosts", "/etc/resolv.conf"},
		IPC:   "/proc/self/ns/ipc",
	}
}

// RequestRestart notes that the next start follows a reset that wants the pod clean.
func RequestRestart(stateDir string) error {
	return store.WriteFile(filepath.Join(stateDir, markerFile), nil)
}

// AtStart is called before anything else of the pod runs. The first time it records what
// a new pod looks like. After a request to restart it returns what is not as it was then.
// Otherwise the executor alone has restarted, beside a sandbox in use, and there is
// nothing to look for.
func (p Pod) AtStart(stateDir string) (differences []string, err error) {
	marker := filepath.Join(stateDir, markerFile)
	_, err = os.Lstat(marker)
	requested := !errors.Is(err, fs.ErrNotExist)
	baseline, err := readBaseline(stateDir)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !requested:
		return nil, p.recordBaseline(stateDir)
	case err != nil:
		return nil, fmt.Errorf("what the pod was like at first is not known: %w", err)
	case !requested:
		return nil, nil
	}
	if differences = p.differences(baseline); len(differences) > 0 {
		return differences, nil
	}
	return nil, os.Remove(marker)
}

func (p Pod) differences(baseline map[string]string) []string {
	var found []string
	for _, path := range slices.Concat(p.Dirs, p.Files) {
		now, err := look(path)
		if err != nil {
			found = append(found, err.Error())
		} else if now != baseline[path] {
			found = append(found, fmt.Sprintf("%s was %s and is %s", path, baseline[path], now))
		}
	}
	for _, dir := range p.Dirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			found = append(found, fmt.Sprintf("look into %s: %v", dir, err))
		} else if len(entries) > 0 {
			found = append(found, fmt.Sprintf("%s is in %s, and %d more", entries[0].Name(), dir, len(entries)-1))
		}
	}
	for _, kind := range systemVKinds {
		count, _, err := kind.objects()
		if err != nil {
			found = append(found, err.Error())
		} else if count > 0 {
			found = append(found, fmt.Sprintf("there are System V %s: %d", kind.name, count))
		}
	}
	return found
}

// look describes a file or a directory in one line: kind, mode, owner, extended
// attributes (access lists among them), and what a file holds.
func look(path string) (string, error) {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "not there", nil
	}
	if err != nil {
		return "", err
	}
	text := info.Mode().String()
	if owner, ok := info.Sys().(*syscall.Stat_t); ok {
		text += fmt.Sprintf(" of %d:%d", owner.Uid, owner.Gid)
	}
	attributes, err := attributesOf(path)
	if err != nil {
		return "", fmt.Errorf("look at %s: %w", path, err)
	}
	text += attributes
	if info.Mode().IsRegular() {
		sum, err := digest(path)
		if err != nil {
			return "", err
		}
		text += " with " + sum
	}
	return text, nil
}

func attributesOf(path string) (string, error) {
	names := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, names)
	if errors.Is(err, unix.ENOTSUP) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	var text strings.Builder
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 64<<10)
		size, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&text, " %s=%x", name, sha256.Sum256(value[:size]))
	}
	return text.String(), nil
}

// digest does not hold the file in memory, since a sandbox may have filled it.
func digest(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, file); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

func (p Pod) recordBaseline(stateDir string) error {
	baseline := map[string]string{}
	for _, path := range slices.Concat(p.Dirs, p.Files) {
		state, err := look(path)
		if err != nil {
			return fmt.Errorf("record what the pod is like: %w", err)
		}
		baseline[path] = state
	}
	data, err := json.Marshal(baseline)
	if err != nil {
		return fmt.Errorf("record what the pod is like: %w", err)
	}
	return store.WriteFile(filepath.Join(stateDir, baselineFile), data)
}

func readBaseline(stateDir string) (map[string]string, error) {
	data, err := os.ReadFile(filepath.Join(stateDir, baselineFile))
	if err != nil {
		return nil, err
	}
	var baseline map[string]string
	return baseline, json.Unmarshal(data, &baseline)
}
