package gormsessions

import (
	"cmp"
	"database/sql"
	"fmt"
	"hash/fnv"
	"reflect"
	"slices"
	"time"

	"github.com/google/uuid"
	"gorm.io/gorm"
	"gorm.io/gorm/clause"
)

// MaxPerOwner is exact because whoever would add an active session first takes a
// lock on its owner, in the transaction that adds it, and counts then: to count
// and insert without one lets as many through as there are at once.

// checkLimit refuses a MaxPerOwner that could not be kept.
func (b *binding) checkLimit() error {
	switch {
	case b.maxPerOwner == 0:
	case b.ownerID == nil:
		return fmt.Errorf("gormsessions: Config.MaxPerOwner: %s has no owner: embed Session, or add an OwnerID", b.schema.Name)
	case b.owner == nil && b.root.Name() != "postgres" && b.root.Name() != "sqlite":
		return fmt.Errorf("gormsessions: Config.MaxPerOwner: on %s it needs an owner's row to lock: embed Session in %s, not Base", b.root.Name(), b.schema.Name)
	}
	return nil
}

// owned is how many new active sessions an owner gets.
type owned struct {
	is     clause.Expression // the condition that a session is the owner's
	key    any
	bucket int32
	fresh  int
	except uuid.UUID // a session that is being revalidated
}

// owners groups sessions that are to be active by their owner, in the one order
// in which all lock them. Those of nobody are left out.
func (b *binding) owners(db *gorm.DB, sessions []reflect.Value, now time.Time) []owned {
	var list []owned
	index := map[string]int{}
	for _, v := range sessions {
		key, nobody := b.ownerID.ValueOf(db.Statement.Context, v)
		if nobody || !sessionAt(v).activeAt(now) {
			continue
		}
		is := group{clause.Eq{Column: at(b.ownerID), Value: key}}
		identity := fmt.Sprint(reflect.Indirect(reflect.ValueOf(key)))
		if b.ownerType != nil {
			kind, _ := b.ownerType.ValueOf(db.Statement.Context, v)
			is = append(is, clause.Eq{Column: at(b.ownerType), Value: kind})
			identity = fmt.Sprintf("%v %s", reflect.Indirect(reflect.ValueOf(kind)), identity)
		}
		i, there := index[identity]
		if !there {
			i = len(list)
			index[identity] = i
			// A bounded number of locks, however many owners one statement has.
			list = append(list, owned{is: is, key: key, bucket: int32(hashOf(identity) % 1024)})
		}
		list[i].fresh++
	}
	slices.SortFunc(list, func(a, b owned) int { return cmp.Compare(a.bucket, b.bucket) })
	return list
}

func hashOf(text string) uint32 {
	hash := fnv.New32a()
	_, _ = hash.Write([]byte(text))
	return hash.Sum32()
}

// anyOf is c without the conditions that With brought: an owner's limit counts all
// of their sessions.
func (c call) anyOf() call {
	tx := c.plain().Model(c.value())
	if locking, ok := c.db.Statement.Clauses["FOR"].Expression.(clause.Locking); ok {
		tx = tx.Clauses(locking)
	}
	return call{c.binding, tx.Session(&gorm.Session{})}
}

// tooMany takes the owners' locks, and finds the sessions that have to go before
// the new ones are added. c is in a transaction.
func (c call) tooMany(owners []owned, now time.Time) ([]any, error) {
	if err := c.lockOwners(owners); err != nil {
		return nil, err
	}
	var evicted []any
	for _, o := range owners {
		ids, err := c.byLastUse(o, now)
		if err != nil {
			return nil, err
		}
		room := c.maxPerOwner - o.fresh
		if len(ids) <= room {
			continue
		}
		if room < 0 || c.onLimit == Reject {
			c.send(c.db, Event{Kind: EventRejected, Owner: o.key, Reason: reasonLimit, Time: now, Count: int64(o.fresh)})
			return nil, ErrTooManySessions
		}
		evicted = append(evicted, ids[room:]...)
	}
	return evicted, nil
}

// evict revokes sessions one by one: for a list MySQL may look at all rows, and
// lock them.
func (c call) evict(ids []any, now time.Time) error {
	for _, id := range ids {
		if _, err := c.end(clause.Eq{Column: at(c.id), Value: id}, reasonLimit, now); err != nil {
			return err
		}
	}
	return nil
}

// makeRoomFor makes room for a stored session that is to be active again, as next.
func (c call) makeRoomFor(session any, next Base, now time.Time) error {
	v := reflect.New(c.schema.ModelType).Elem()
	v.Set(reflect.ValueOf(session).Elem())
	*sessionAt(v) = next
	owners := c.owners(c.db, []reflect.Value{v}, now)
	if len(owners) == 0 {
		return nil
	}
	owners[0].except = next.ID
	c = c.current().anyOf()
	evicted, err := c.tooMany(owners, now)
	if err != nil {
		return err
	}
	return c.evict(evicted, now)
}

// byLastUse are the IDs of an owner's active sessions, the last used first.
func (c call) byLastUse(o owned, now time.Time) ([]any, error) {
	db := c.db.Session(&gorm.Session{SkipHooks: true}).Where(o.is).Where(c.active(now)).Where(clause.Neq{Column: at(c.id), Value: o.except}).
		Order(clause.OrderBy{Expression: clause.Expr{SQL: "COALESCE(?, ?) DESC, ? DESC", Vars: []any{at(c.lastUsedAt), at(c.createdAt), at(c.id)}}}).
		Select(c.id.DBName)
	list := reflect.New(reflect.SliceOf(c.schema.ModelType))
	if err := db.Find(list.Interface()).Error; err != nil {
		return nil, err
	}
	ids := make([]any, list.Elem().Len())
	for i := range ids {
		ids[i] = sessionAt(list.Elem().Index(i)).ID
	}
	return ids, nil
}

func (c call) lockOwners(owners []owned) error {
	tx := c.plain()
	switch tx.Name() {
	case "sqlite":
		return c.lockWrites()
	case "postgres":
		// Not the owner's row: the application may hold it for reasons of its
		// own, and Base has none.
		for i, o := range owners {
			if i > 0 && o.bucket == owners[i-1].bucket {
				continue
			}
			var isolation string
			err := tx.Raw("SELECT current_setting('transaction_isolation') FROM pg_advisory_xact_lock(?, ?)", int32(hashOf(c.schema.Table)), o.bucket).Scan(&isolation).Error
			if err != nil {
				return err
			}
			if isolation == "repeatable read" { // SERIALIZABLE would fail where it does harm
				return fmt.Errorf("%w: with MaxPerOwner a session cannot be created in a transaction at REPEATABLE READ, which does not see those that others have added: begin it at READ COMMITTED", ErrInvalidValue)
			}
		}
		return nil
	}
	keys := make([]any, len(owners))
	for i, o := range owners {
		keys[i] = o.key
	}
	key := c.owner.References[0].PrimaryKey
	locked := reflect.New(reflect.SliceOf(c.owner.FieldSchema.ModelType))
	err := tx.Session(&gorm.Session{SkipHooks: true}).Unscoped().Clauses(clause.Locking{Strength: "UPDATE"}).Select(key.DBName).
		Where(clause.IN{Column: at(key), Values: keys}).Order(clause.OrderByColumn{Column: at(key)}).Find(locked.Interface()).Error
	if err == nil && locked.Elem().Len() != len(owners) {
		err = fmt.Errorf("%w: of %d owners %d are in %s (or two spellings of a key are one to the database)",
			ErrWrongOwner, len(owners), locked.Elem().Len(), c.owner.FieldSchema.Table)
	}
	return err
}

// lockWrites takes SQLite's write lock now, by an update that changes nothing: a
// transaction that reads first can only fail when another wrote in between.
func (c call) lockWrites() error {
	if c.db.Name() != "sqlite" {
		return nil
	}
	return c.plain().Exec("UPDATE ? SET ? = ? WHERE 1 = 0", clause.Table{Name: c.schema.Table}, column(c.id), column(c.id)).Error
}

// isolation is how a transaction begins where it counts. At REPEATABLE READ, MySQL's
// default, a database would not see what others added while it waited for the lock, if
// anything has looked before: a hook, an association's, another plugin. (To lock what is
// counted would show it, but MySQL locks the gaps beside it too: those of new owners
// deadlock.)
func (c call) isolation() []*sql.TxOptions {
	if name := c.db.Name(); c.maxPerOwner == 0 || name != "postgres" && name != "mysql" {
		return nil
	}
	return []*sql.TxOptions{{Isolation: sql.LevelReadCommitted}}
}

// beginCreate begins the transaction of a limited create as GORM would, which then
// finds it begun, and ends it.
func (b *binding) beginCreate(db *gorm.DB) {
	stmt := db.Statement
	if db.Error != nil || db.DryRun || db.SkipDefaultTransaction || b.maxPerOwner == 0 || !b.mine(stmt) {
		return
	}
	opts := call{b, db}.isolation()
	if _, within := stmt.ConnPool.(gorm.TxCommitter); within || opts == nil {
		return
	}
	tx := db.Begin(opts...)
	if tx.Error == gorm.ErrInvalidTransaction {
		return // GORM goes on without one
	}
	if db.AddError(tx.Error) == nil {
		stmt.ConnPool = tx.Statement.ConnPool
		db.InstanceSet(startedByGORM, true)
	}
}

const startedByGORM = "gorm:started_transaction"

// What a create holds for the limit, from just before its INSERT to just after, so
// that no hook of the application's runs meanwhile.
const (
	heldPool  = "gormsessions:held_pool"  // the statement's own, where the plugin began a transaction
	heldPoint = "gormsessions:held_point" // set with a savepoint in the caller's transaction
	savepoint = "gormsessions_limit"
)

// beginLimited makes room for the sessions of a create.
func (b *binding) beginLimited(db *gorm.DB) {
	if db.Error != nil || db.DryRun || b.maxPerOwner == 0 || !b.mine(db.Statement) {
		return
	}
	created, _ := db.InstanceGet(snapshots)
	list, _ := created.([]snapshot)
	sessions := make([]reflect.Value, len(list))
	for i, s := range list {
		sessions[i] = s.value
	}
	now := nowOf(db)
	owners := b.owners(db, sessions, now)
	if len(owners) == 0 {
		return
	}
	_, gorms := db.InstanceGet(startedByGORM)
	around, _ := db.Get(outboxKey)
	own, _ := around.(*outbox)
	ours := own != nil && own.of == b // not another plugin's, of any isolation
	_, within := db.Statement.ConnPool.(gorm.TxCommitter)
	callers := within && !gorms && !ours
	if !within { // SkipDefaultTransaction
		tx := db.Session(&gorm.Session{NewDB: true}).Begin(call{b, db}.isolation()...)
		if db.AddError(tx.Error) != nil {
			return
		}
		db.InstanceSet(heldPool, db.Statement.ConnPool)
		db.Statement.ConnPool = tx.Statement.ConnPool
		unprepared(db.Statement)
	}
	box := &outbox{of: b}
	db.InstanceSet(outboxKey, box)
	tx := db.Session(&gorm.Session{NewDB: true}).Set(readPrimary, struct{}{}).Set(outboxKey, box).Model(b.value())
	unprepared(tx.Statement)
	c := call{b, tx.Session(&gorm.Session{})}
	if callers {
		c = c.current() // the transaction may have looked before
	}
	evicted, err := c.tooMany(owners, now)
	if err == nil && callers && len(evicted) > 0 {
		// They stay if the INSERT fails, and the transaction goes on.
		if err = db.Session(&gorm.Session{NewDB: true}).SavePoint(savepoint).Error; err == nil {
			db.InstanceSet(heldPoint, true)
		}
	}
	if err == nil {
		err = c.evict(evicted, now)
	}
	_ = db.AddError(err)
}

// endLimited ends what beginLimited began.
func (b *binding) endLimited(db *gorm.DB) {
	if b.maxPerOwner == 0 || !b.mine(db.Statement) {
		return
	}
	tx := db.Session(&gorm.Session{NewDB: true})
	tx.Error = nil // it has the statement's
	if _, held := db.InstanceGet(heldPoint); held && db.Error != nil {
		_ = tx.RollbackTo(savepoint) // a transaction that the database ended has none
	}
	// A hook that panics may come next.
	defer func() {
		if box := b.limitedBox(db); box != nil && !inGORMs(db) {
			box.settle(db)
		}
	}()
	pool, held := db.InstanceGet(heldPool)
	if !held {
		return
	}
	if db.Error != nil {
		_ = tx.Rollback()
	} else {
		_ = db.AddError(tx.Commit().Error)
	}
	db.Statement.ConnPool = pool.(gorm.ConnPool)
}

// limitedBox is the outbox of a create for which room was made; nil: none was.
func (b *binding) limitedBox(db *gorm.DB) *outbox {
	if b.maxPerOwner == 0 {
		return nil // to ask GORM costs more than to know
	}
	box, _ := db.InstanceGet(outboxKey)
	made, _ := box.(*outbox)
	return made
}
