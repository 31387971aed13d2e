"""SavedModels: of one network, of arithmetic, and of TensorFlow 1."""

from bids_cmb.networks import backend

SHAPE = (24, 20, 16)


def residual(shape=SHAPE):
    """Eight filters and residual blocks, as the name of SHIVA-CMB's second network has them."""
    keras = backend.get_keras()
    layers = keras.layers
    image = x = keras.Input((*shape, 1))
    for width in (8, 12):
        y = layers.Conv3D(width, 3, padding="same")(x)
        y = layers.Activation("swish")(layers.BatchNormalization()(y))
        y = layers.Conv3D(width, 3, padding="same")(y)
        x = layers.Activation("swish")(layers.Add()([y, layers.Conv3D(width, 1)(x)]))
        if width == 8:
            skip, x = x, layers.MaxPooling3D(2)(x)
    x = layers.Concatenate()([layers.UpSampling3D(2)(x), skip])
    x = layers.Conv3D(8, 3, padding="same", activation="swish")(x)
    return keras.Model(image, layers.Conv3D(1, 1, activation="sigmoid")(x))


def module(ask, folder, shape=(None, *SHAPE, 1)):
    """A SavedModel whose answer is ``ask(image)``."""
    tf = backend.get_tensorflow()

    class Holder(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec(shape, tf.float32, name="image")])
        def serve(self, image):
            return {"answer": ask(tf, image)}

    made = Holder()
    tf.saved_model.save(made, str(folder), signatures={"serving_default": made.serve})
    return folder


def saves(tf, path):
    """An operation that writes two files, ``path.index`` and ``path.data-00000-of-00001``."""
    return tf.raw_ops.SaveV2(
        prefix=str(path), tensor_names=["a"], shape_and_slices=[""], tensors=[tf.constant([1.0])]
    )


def version_one(folder, written, *, where):
    """A SavedModel of TensorFlow 1 that saves at loading, or before it answers."""
    tf = backend.get_tensorflow()
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        image = v1.placeholder(tf.float32, (None, *SHAPE, 1), "image")
        saver = saves(tf, written)
        with tf.control_dependencies([saver] if where == "control" else []):
            answer = tf.identity(image * 0.5)
        signature = v1.saved_model.signature_def_utils.predict_signature_def(
            {"image": image}, {"answer": answer}
        )
        builder = v1.saved_model.Builder(str(folder))
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            {"serving_default": signature},
            main_op=saver if where == "main_op" else None,
        )
        builder.save()
    return folder
