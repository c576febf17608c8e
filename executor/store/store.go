// Package store keeps what must outlive the executor's process: one record for each task.
// It knows nothing of processes.
//
// A record is replaced atomically and is on disk when Save returns. A pod outlives a reboot
// of its node, and so do the records: a task whose end was reported once stays ended.
package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/opensandbox/operator/executor/api"
)

const (
	tasksDir      = "tasks"
	unreadableDir = "unreadable"
	recordFile    = "record.json"
	maxRecord     = 4 << 20
	version       = 1
)

// Record is all that is known of a task.
type Record struct {
	Version int `json:"version"`
	// Task is what clients are told.
	Task api.Task `json:"task"`
	// Spec is the task that was asked for. It is nil if the record was damaged.
	Spec *api.TaskSpec `json:"spec,omitempty"`
	// Supervisor and First are the processes, zero before they are started.
	Supervisor Process `json:"supervisor"`
	First      Process `json:"first"`
}

// Process tells a process from every other: a pid alone is used again.
type Process struct {
	PID int `json:"pid,omitempty"`
	// StartTime is field 22 of /proc/PID/stat.
	StartTime uint64 `json:"startTime,omitempty"`
}

// Store is a directory of records.
type Store struct {
	dir string
}

// Open makes the directory if need be.
func Open(dir string) (*Store, error) {
	for _, d := range []string{dir, filepath.Join(dir, tasksDir)} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("open the state directory: %w", err)
		}
	}
	return &Store{dir: dir}, nil
}

// Dir is where a task's files are.
func (s *Store) Dir(id string) string { return filepath.Join(s.dir, tasksDir, id) }

// Save writes a record and returns when it is on disk.
func (s *Store) Save(r Record) error {
	r.Version = version
	if err := api.ValidateTaskID(r.Task.ID); err != nil {
		return fmt.Errorf("save a record: %w", err)
	}
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("save record %s: %w", r.Task.ID, err)
	}
	dir := s.Dir(r.Task.ID)
	created, err := makeDir(dir)
	if err == nil {
		err = WriteFile(filepath.Join(dir, recordFile), data)
	}
	if err == nil && created {
		err = syncDir(filepath.Dir(dir))
	}
	if err != nil {
		return fmt.Errorf("save record %s: %w", r.Task.ID, err)
	}
	return nil
}

func makeDir(dir string) (created bool, err error) {
	err = os.Mkdir(dir, 0o700)
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	return err == nil, err
}

// Load reads all records. One that cannot be read is moved away, and a record that says so
// takes its place: the task may have run, so it must not run again. The second result says
// what was wrong with each of these.
func (s *Store) Load() (records []Record, setAside []error, err error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, tasksDir))
	if err != nil {
		return nil, nil, fmt.Errorf("load the records: %w", err)
	}
	for _, entry := range entries {
		id := entry.Name()
		if api.ValidateTaskID(id) != nil { // an interrupted Remove left it
			_ = os.RemoveAll(s.Dir(id))
			continue
		}
		record, err := s.read(id)
		if err != nil {
			setAside = append(setAside, fmt.Errorf("record %s: %w", id, err))
			if record, err = s.replace(id); err != nil {
				return nil, setAside, err
			}
		}
		records = append(records, record)
	}
	return records, setAside, nil
}

func (s *Store) read(id string) (Record, error) {
	file, err := os.Open(filepath.Join(s.Dir(id), recordFile))
	if err != nil {
		return Record{}, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return Record{}, err
	}
	if info.Size() > maxRecord {
		return Record{}, fmt.Errorf("%d bytes are too many", info.Size())
	}
	data := make([]byte, info.Size())
	if _, err := file.ReadAt(data, 0); err != nil && info.Size() > 0 {
		return Record{}, err
	}
	return decode(id, data)
}

func decode(id string, data []byte) (Record, error) {
	var r Record
	if err := api.Decode(data, &r); err != nil {
		return Record{}, err
	}
	switch r.Task.State {
	case api.Starting, api.Running, api.Succeeded, api.Failed:
	default:
		return Record{}, fmt.Errorf("state %q is unknown", r.Task.State)
	}
	if r.Version != version || r.Task.ID != id {
		return Record{}, fmt.Errorf("version %d, id %q", r.Version, r.Task.ID)
	}
	if r.Spec != nil {
		if err := r.Spec.Validate(); err != nil {
			return Record{}, err
		}
	}
	return r, nil
}

// replace moves a damaged record away and writes one that says so.
func (s *Store) replace(id string) (Record, error) {
	aside := filepath.Join(s.dir, unreadableDir)
	if err := os.MkdirAll(aside, 0o700); err != nil {
		return Record{}, fmt.Errorf("set record %s aside: %w", id, err)
	}
	to := filepath.Join(aside, fmt.Sprintf("%s-%d", id, time.Now().UnixNano()))
	if err := os.Rename(s.Dir(id), to); err != nil {
		return Record{}, fmt.Errorf("set record %s aside: %w", id, err)
	}
	now := time.Now().UTC()
	r := Record{Version: version, Task: api.Task{
		ID:         id,
		State:      api.Failed,
		Reason:     api.ReasonRecordUnreadable,
		Message:    "the executor restarted and could not read this task's record",
		FinishedAt: &now,
	}}
	return r, s.Save(r)
}

// Remove deletes a task's record. When it is interrupted, the task is gone all the same.
func (s *Store) Remove(id string) error {
	if err := api.ValidateTaskID(id); err != nil {
		return fmt.Errorf("remove a record: %w", err)
	}
	trash := filepath.Join(s.dir, tasksDir, "."+id) // no valid id starts with a dot
	_ = os.RemoveAll(trash)
	if err := os.Rename(s.Dir(id), trash); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove record %s: %w", id, err)
	}
	if err := syncDir(filepath.Join(s.dir, tasksDir)); err != nil {
		return fmt.Errorf("remove record %s: %w", id, err)
	}
	return os.RemoveAll(trash)
}

// Wipe deletes everything about tasks, also what was set aside.
func (s *Store) Wipe() error {
	if err := os.RemoveAll(filepath.Join(s.dir, unreadableDir)); err != nil {
		return fmt.Errorf("wipe the records: %w", err)
	}
	if err := os.RemoveAll(filepath.Join(s.dir, tasksDir)); err != nil {
		return fmt.Errorf("wipe the records: %w", err)
	}
	if err := os.Mkdir(filepath.Join(s.dir, tasksDir), 0o700); err != nil {
		return fmt.Errorf("wipe the records: %w", err)
	}
	return syncDir(s.dir)
}

// WriteFile replaces a file atomically and returns when it is on disk.
func WriteFile(path string, data []byte) error {
	tmp := path + ".tmp"
	file, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	if err == nil {
		err = file.Sync()
	}
	if closeErr := file.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		_ = os.Remove(tmp)
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	file, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer file.Close()
	return file.Sync()
}
