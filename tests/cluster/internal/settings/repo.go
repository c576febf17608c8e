package settings

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
)

// Environment variables that stand in for flags.
const (
	EnvState = "OPENSANDBOX_CLUSTER_STATE"
	EnvBin   = "OPENSANDBOX_CLUSTER_BIN"
	EnvSlot  = "OPENSANDBOX_CLUSTER_SLOT"
	// EnvKubernetes is what 'make KUBERNETES=...' sets.
	EnvKubernetes = "OPENSANDBOX_CLUSTER_KUBERNETES"
)

// maxStatePath keeps the unix sockets below the state directory within the
// kernel's limit of 108 bytes.
const maxStatePath = 90

// Locate finds the source tree around dir and the cluster's folders. state and
// bin may be empty: the environment decides then, and last the default, which is
// .cluster at the root of the source tree.
func Locate(dir, state string) (*Cluster, error) {
	repo, err := findRepo(dir)
	if err != nil {
		return nil, err
	}
	if state == "" {
		state = os.Getenv(EnvState)
	}
	if state == "" {
		state = filepath.Join(repo, ".cluster")
	}
	if state, err = filepath.Abs(state); err != nil {
		return nil, err
	}
	if len(state) > maxStatePath {
		return nil, fmt.Errorf("the state directory %s is longer than %d characters, too long for unix sockets in it: name a shorter one with --state or %s",
			state, maxStatePath, EnvState)
	}
	bin := os.Getenv(EnvBin)
	if bin == "" {
		bin = filepath.Join(state, "bin")
	}
	if bin, err = filepath.Abs(bin); err != nil {
		return nil, err
	}
	return &Cluster{Repo: repo, State: state, Bin: bin}, nil
}

// SlotFromEnv returns the slot that the environment asks for, or 0.
func SlotFromEnv() (int, error) {
	value := os.Getenv(EnvSlot)
	if value == "" {
		return 0, nil
	}
	slot, err := strconv.Atoi(value)
	if err != nil {
		return 0, fmt.Errorf("%s: %q is not a number", EnvSlot, value)
	}
	return slot, CheckSlot(slot)
}

// CheckSlot refuses slots out of range.
func CheckSlot(slot int) error {
	if slot < 0 || slot > MaxSlot {
		return fmt.Errorf("slot %d: slots go from 0 to %d", slot, MaxSlot)
	}
	return nil
}

func findRepo(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	for at := dir; ; at = filepath.Dir(at) {
		if _, err := os.Stat(filepath.Join(at, "tests", "cluster", "go.mod")); err == nil {
			return at, nil
		}
		if at == filepath.Dir(at) {
			return "", fmt.Errorf("%s is not inside the operator's source tree (no tests/cluster/go.mod there or above): run this from a clone of it", dir)
		}
	}
}
